"""VDIs as logical volumes."""
