"""What clients ask for in a query string."""

from typing import Any

from rest_framework import serializers

from migrations_api.serializers.fields import QueryFlagField, StatusField
from migrations_api.states import RunState
from tenants.models import Isolation


class PageQuerySerializer(serializers.Serializer[Any]):
    cursor = serializers.CharField(required=False, default="", allow_blank=True, max_length=1000)
    page_size = serializers.IntegerField(required=False, default=50, min_value=1, max_value=200)


class TenantListQuerySerializer(PageQuerySerializer):
    isolation = serializers.ChoiceField(choices=Isolation.choices, required=False)
    status = StatusField(required=False)
    label = serializers.ListField(  # type: ignore[assignment]  # the parameter's name, also a field attribute's
        child=serializers.RegexField(r"^[^=]+=.*$"), required=False, help_text="key=value; given twice, both must hold."
    )
    search = serializers.CharField(required=False, max_length=200, help_text="Part of the tenant id or name.")
    ordering = serializers.ChoiceField(
        choices=["tenant_id", "-tenant_id", "name", "-name", "created_at", "-created_at"],
        required=False,
        default="tenant_id",
    )


class TargetQuerySerializer(serializers.Serializer[Any]):
    app_label = serializers.CharField(required=False, max_length=255)
    migration_name = serializers.CharField(required=False, max_length=255)


class SqlQuerySerializer(serializers.Serializer[Any]):
    sql = QueryFlagField(
        required=False,
        default=False,
        help_text="With the SQL of each step, made on a scratch database; takes the operator role.",
    )


class TargetSqlQuerySerializer(TargetQuerySerializer, SqlQuerySerializer):
    pass


class RollbackQuerySerializer(SqlQuerySerializer):
    run = serializers.IntegerField(required=False, min_value=1, help_text="Undo what that run applied.")
    steps = serializers.IntegerField(
        required=False, min_value=1, max_value=10_000, help_text="Undo so many of the migrations applied last."
    )


class DeleteTenantQuerySerializer(serializers.Serializer[Any]):
    drop = QueryFlagField(required=False, default=False, help_text="Drop the schema or database as well.")
    confirm = serializers.CharField(required=False, default="", help_text="The tenant id once more, for drop.")


class RunListQuerySerializer(PageQuerySerializer):
    tenant_id = serializers.CharField(required=False, max_length=63)
    state = serializers.ChoiceField(choices=RunState.choices, required=False)


class RolloutRunsQuerySerializer(PageQuerySerializer):
    state = serializers.ChoiceField(choices=RunState.choices, required=False)
