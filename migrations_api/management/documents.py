"""What `--format json` writes, as the API has it.

To be imported only where it is asked for: Django REST framework comes with it, which takes a third of the time in which
a command is there.
"""

from typing import Any

from migrations_api.executor.transcript import Transcript
from migrations_api.models import MigrationRun
from migrations_api.orchestrator.observations import stored_standings
from migrations_api.orchestrator.previews import Preview
from migrations_api.plan import Plan
from migrations_api.serializers.plans import PlanSerializer
from migrations_api.serializers.rollouts import RolloutPreviewSerializer
from migrations_api.serializers.runs import MigrationRunSerializer
from migrations_api.serializers.tenants import TenantSerializer
from tenants.models import Tenant


def of_run(run: MigrationRun) -> dict[str, Any]:
    return MigrationRunSerializer(run).data


def of_plan(plan: Plan, transcript: Transcript | None = None) -> dict[str, Any]:
    return PlanSerializer(plan, context={"transcript": transcript}).data


def of_preview(preview: Preview) -> dict[str, Any]:
    return RolloutPreviewSerializer(preview).data


def of_new_tenant(tenant: Tenant) -> dict[str, Any]:
    return TenantSerializer(tenant, context={"standings": stored_standings([tenant]), "batches": {}}).data
