from sm_iscsi.driver import ISCSIDriver

driver = ISCSIDriver()
