from sm_lvm.driver import LVMDriver

driver = LVMDriver()
