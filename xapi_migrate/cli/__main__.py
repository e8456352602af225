"""python -m xapi_migrate.cli is xapi-migrate."""

from . import main

main()
