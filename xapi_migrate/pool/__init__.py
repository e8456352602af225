"""Several hosts on one database: a call reaches the member whose it is, members wake and watch each other."""
