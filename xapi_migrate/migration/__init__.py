"""The migration itself: two machines (sender, receiver), five phases, a journal."""
