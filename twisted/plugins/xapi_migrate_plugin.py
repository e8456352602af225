from twisted.application.service import ServiceMaker

xapi_migrate = ServiceMaker(
    "xapi_migrate daemon",
    "xapi_migrate._tap",
    "Moves virtual machines between hosts, with their disks, while they run; speaks XenAPI.",
    "xapi-migrate",
)
