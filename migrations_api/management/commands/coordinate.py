from typing import Any

from migrations_api.management.base import ServiceCommand
from migrations_api.management.interrupt import graceful_stop
from migrations_api.management.supervisor import tell_what_happens
from migrations_api.orchestrator.coordinator import coordinate


class Command(ServiceCommand):
    help = "Carry out what the API asks for. A second one stands by. `serve` runs one beside the web server."

    def handle(self, **options: Any) -> None:
        tell_what_happens()
        with graceful_stop(self.stderr.write) as should_stop:
            coordinate(should_stop=should_stop)
