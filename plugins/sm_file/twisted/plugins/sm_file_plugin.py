from sm_file.driver import FileDriver

driver = FileDriver()
