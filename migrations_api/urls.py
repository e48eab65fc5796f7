from django.urls import path

from migrations_api.views import fleet, operations, rollout_verbs, rollouts, runs, tenants

urlpatterns = [
    path("tenants", tenants.TenantsView.as_view(), name="tenants"),
    # Before the tenants' own: both names are reserved tenant ids.
    path("tenants/plan", fleet.FleetPlanView.as_view(), name="fleet-plan"),
    path("tenants/migrate-all", rollouts.MigrateAllView.as_view(), name="migrate-all"),
    path("tenants/<str:tenant_id>", tenants.TenantView.as_view(), name="tenant"),
    path("tenants/<str:tenant_id>/migrations", tenants.TenantMigrationsView.as_view(), name="tenant-migrations"),
    path("tenants/<str:tenant_id>/plan", tenants.TenantPlanView.as_view(), name="tenant-plan"),
    path("tenants/<str:tenant_id>/migrate", tenants.TenantMigrateView.as_view(), name="tenant-migrate"),
    path("tenants/<str:tenant_id>/hold", tenants.TenantHoldView.as_view(), name="tenant-hold"),
    path("tenants/<str:tenant_id>/release", tenants.TenantReleaseView.as_view(), name="tenant-release"),
    path("runs", runs.RunsView.as_view(), name="runs"),
    path("runs/<int:run_id>", runs.RunView.as_view(), name="run"),
    path("runs/<int:run_id>/events", runs.RunEventsView.as_view(), name="run-events"),
    path("runs/<int:run_id>/cancel", runs.RunCancelView.as_view(), name="run-cancel"),
    path("runs/<int:run_id>/skip", runs.RunSkipView.as_view(), name="run-skip"),
    path("runs/<int:run_id>/repair", runs.RunRepairView.as_view(), name="run-repair"),
    path("runs/<int:run_id>/retry", runs.RunRetryView.as_view(), name="run-retry"),
    path("rollouts", rollouts.RolloutsView.as_view(), name="rollouts"),
    path("rollouts/<int:rollout_id>", rollouts.RolloutView.as_view(), name="rollout"),
    path("rollouts/<int:rollout_id>/runs", rollouts.RolloutRunsView.as_view(), name="rollout-runs"),
    path("rollouts/<int:rollout_id>/failures", rollouts.RolloutFailuresView.as_view(), name="rollout-failures"),
    path("rollouts/<int:rollout_id>/events", rollouts.RolloutEventsView.as_view(), name="rollout-events"),
    path("rollouts/<int:rollout_id>/pause", rollout_verbs.RolloutPauseView.as_view(), name="rollout-pause"),
    path("rollouts/<int:rollout_id>/resume", rollout_verbs.RolloutResumeView.as_view(), name="rollout-resume"),
    path("rollouts/<int:rollout_id>/promote", rollout_verbs.RolloutPromoteView.as_view(), name="rollout-promote"),
    path("rollouts/<int:rollout_id>/cancel", rollout_verbs.RolloutCancelView.as_view(), name="rollout-cancel"),
    path("rollouts/<int:rollout_id>/retry", rollout_verbs.RolloutRetryView.as_view(), name="rollout-retry"),
    path("fleet", fleet.FleetView.as_view(), name="fleet"),
    path("healthz", operations.healthz, name="healthz"),
    path("readyz", operations.readyz, name="readyz"),
    path("metrics", operations.MetricsView.as_view(), name="metrics"),
]
