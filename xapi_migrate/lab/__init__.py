"""Several hosts on one machine, each a daemon process of its own, and a guest to move between them."""
