"""VDIs as LUNs of an iSCSI target that is there already."""
