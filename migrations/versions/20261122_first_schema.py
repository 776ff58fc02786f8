"""First schema

Revision: 20261122_first_schema
After: nothing
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261122_first_schema"
down_revision = None
branch_labels = None
depends_on = None


APPEND_ONLY = """
    CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        RAISE EXCEPTION '% is append only: % refused, write a correction instead', TG_TABLE_NAME, TG_OP
            USING ERRCODE = 'restrict_violation';
    END $$
"""


def upgrade() -> None:
    op.create_table(
        "account_models",
        sa.Column("main_account", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("rps", sa.Numeric(precision=18, scale=6), nullable=False),
        sa.Column("running", sa.Integer(), nullable=False),
        sa.Column("buffer", sa.Integer(), nullable=False),
        sa.Column("next_submit_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("backoff", sa.Integer(), server_default="0", nullable=False),
        sa.Column("learned_seconds", sa.Double(), nullable=True),
        sa.CheckConstraint("rps > 0 AND running > 0 AND buffer >= 0", name=op.f("ck_account_models_limits_positive")),
        sa.PrimaryKeyConstraint("main_account", "region", "model", name=op.f("pk_account_models")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "accounts",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("main_account", sa.Text(), nullable=False),
        sa.Column("base_url", sa.Text(), nullable=False),
        sa.Column("workspace", sa.Text(), nullable=True),
        sa.Column("exclusive", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("file_hosts", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{}'"), nullable=False),
        sa.Column("paused_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("paused_reason", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_accounts")),
        sa.UniqueConstraint("name", name=op.f("uq_accounts_name")),
    )
    op.create_index("ix_accounts_main_account_region", "accounts", ["main_account", "region"], unique=False)
    op.create_table(
        "installation",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_installation")),
    )
    op.create_table(
        "ledger_entries",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("tag", sa.Text(), server_default="", nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("main_account", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("tier", sa.Text(), server_default="", nullable=False),
        sa.Column("quantity", sa.Numeric(precision=18, scale=6), nullable=False),
        sa.Column("flag", sa.Text(), nullable=True),
        sa.Column("upstream_task_id", sa.Text(), nullable=True),
        sa.Column("upstream_request_id", sa.Text(), nullable=True),
        sa.Column("billed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "kind IN ('usage', 'presumed', 'uncertain', 'correction')", name=op.f("ck_ledger_entries_kind_known")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_ledger_entries")),
    )
    op.create_index("ix_ledger_entries_billed_at", "ledger_entries", ["billed_at"], unique=False)
    op.create_index("ix_ledger_entries_team_id_billed_at", "ledger_entries", ["team_id", "billed_at"], unique=False)
    op.create_index(
        "uq_ledger_entries_task_unit_tier",
        "ledger_entries",
        ["task_id", "unit", "tier"],
        unique=True,
        postgresql_where=sa.text("kind <> 'correction'"),
    )
    op.create_table(
        "teams",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("slug", sa.Text(), nullable=False),
        sa.Column("regions", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("default_region", sa.Text(), nullable=False),
        sa.Column("models", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{*}'"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("slug ~ '^[a-z0-9][a-z0-9-]{0,62}$'", name=op.f("ck_teams_slug_form")),
        sa.CheckConstraint(
            "cardinality(regions) > 0 AND default_region = ANY (regions)", name=op.f("ck_teams_default_region_allowed")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_teams")),
        sa.UniqueConstraint("slug", name=op.f("uq_teams_slug")),
    )
    op.create_table(
        "upstream_orphans",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("main_account", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("upstream_task_id", sa.Text(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=True),
        sa.Column("attempt", sa.Integer(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upstream_orphans")),
    )
    op.create_index(
        "uq_upstream_orphans_upstream_task",
        "upstream_orphans",
        ["main_account", "region", "upstream_task_id"],
        unique=True,
    )
    op.create_table(
        "usage_daily",
        sa.Column("day", sa.Date(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("unit", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("quantity", sa.Numeric(precision=18, scale=6), nullable=False),
        sa.Column("entries", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint(
            "day", "team_id", "api_key_id", "region", "model", "tag", "unit", "kind", name=op.f("pk_usage_daily")
        ),
    )
    op.create_table(
        "work",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=True),
        sa.Column("team_id", sa.Uuid(), nullable=True),
        sa.Column("due_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("priority", sa.Integer(), server_default="0", nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("lease_id", sa.Uuid(), nullable=True),
        sa.Column("lease_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("epoch", sa.Integer(), server_default="0", nullable=False),
        sa.PrimaryKeyConstraint("kind", "key", name=op.f("pk_work")),
        postgresql_with={
            "fillfactor": "70",
            "autovacuum_vacuum_scale_factor": "0.01",
            "autovacuum_vacuum_threshold": "200",
            "autovacuum_vacuum_cost_delay": "0",
        },
    )
    op.create_index("ix_work_due", "work", ["kind", sa.literal_column("priority DESC"), "due_at"], unique=False)
    op.create_table(
        "account_keys",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("secret", sa.LargeBinary(), nullable=False),
        sa.Column("upstream_key_id", sa.Text(), nullable=True),
        sa.Column("bad_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_account_keys_account_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account_keys")),
    )
    op.create_index(op.f("ix_account_keys_account_id"), "account_keys", ["account_id"], unique=False)
    op.create_table(
        "api_keys",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), server_default="", nullable=False),
        sa.Column("secret_mac", sa.LargeBinary(), nullable=False),
        sa.Column("models", postgresql.ARRAY(sa.Text()), server_default=sa.text("'{*}'"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_api_keys_team_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index(op.f("ix_api_keys_team_id"), "api_keys", ["team_id"], unique=False)
    op.create_table(
        "places",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("endpoint", sa.Text(), nullable=True),
        sa.Column("region", sa.Text(), nullable=True),
        sa.Column("bucket", sa.Text(), nullable=True),
        sa.Column("prefix", sa.Text(), nullable=False),
        sa.Column("links", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind = 'file' OR bucket IS NOT NULL", name=op.f("ck_places_s3_has_bucket")),
        sa.CheckConstraint("kind IN ('file', 's3')", name=op.f("ck_places_kind_known")),
        sa.CheckConstraint("links IN ('gateway', 'presigned')", name=op.f("ck_places_links_known")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_places_team_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_places")),
    )
    op.create_index(op.f("ix_places_team_id"), "places", ["team_id"], unique=False)
    op.create_table(
        "webhook_events",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("type", sa.Text(), nullable=False),
        sa.Column("payload", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_webhook_events_team_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_webhook_events")),
        sa.UniqueConstraint("task_id", "type", name=op.f("uq_webhook_events_task_id_type")),
    )
    op.create_index(op.f("ix_webhook_events_team_id"), "webhook_events", ["team_id"], unique=False)
    op.create_table(
        "destinations",
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("place_id", sa.Uuid(), nullable=False),
        sa.Column("credentials", sa.LargeBinary(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["place_id"], ["places.id"], name=op.f("fk_destinations_place_id")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_destinations_team_id")),
        sa.PrimaryKeyConstraint("team_id", name=op.f("pk_destinations")),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("api_key_id", sa.Text(), nullable=False),
        sa.Column("mode", sa.Text(), nullable=False),
        sa.Column("upstream_call", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("attempt", sa.Integer(), server_default="0", nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("main_account", sa.Text(), nullable=False),
        sa.Column("account_key_id", sa.Uuid(), nullable=True),
        sa.Column("place_id", sa.Uuid(), nullable=True),
        sa.Column("tag", sa.Text(), server_default="", nullable=False),
        sa.Column("most", sa.Integer(), nullable=False),
        sa.Column("request_id", sa.Text(), nullable=False),
        sa.Column("upstream_task_id", sa.Text(), nullable=True),
        sa.Column("upstream_request_id", sa.Text(), nullable=True),
        sa.Column("last_request_id", sa.Text(), nullable=True),
        sa.Column("code", sa.Text(), nullable=True),
        sa.Column("message", sa.Text(), nullable=True),
        sa.Column("refused_inline", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("needs_operator", sa.Boolean(), server_default=sa.text("false"), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("queue_deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("call_deadline_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("submitted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("made_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("grace_until", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'canceled', 'expired'))",
            name=op.f("ck_tasks_finished_iff_terminal"),
        ),
        sa.CheckConstraint("mode IN ('async', 'durable', 'relay')", name=op.f("ck_tasks_mode_known")),
        sa.CheckConstraint(
            "state IN ('queued', 'failed', 'canceled') OR attempt > 0", name=op.f("ck_tasks_attempt_counted")
        ),
        sa.CheckConstraint(
            "state IN ('queued', 'submitting', 'doubtful', 'pending', 'running', 'delivering', 'succeeded', 'failed', 'canceled', 'expired')",
            name=op.f("ck_tasks_state_known"),
        ),
        sa.CheckConstraint(
            "state NOT IN ('pending', 'running', 'delivering', 'succeeded') OR upstream_task_id IS NOT NULL OR upstream_call = 'sync'",
            name=op.f("ck_tasks_upstream_task_known"),
        ),
        sa.CheckConstraint("upstream_call IN ('async', 'sync')", name=op.f("ck_tasks_upstream_call_known")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_tasks_account_id")),
        sa.ForeignKeyConstraint(["api_key_id"], ["api_keys.id"], name=op.f("fk_tasks_api_key_id")),
        sa.ForeignKeyConstraint(["place_id"], ["places.id"], name=op.f("fk_tasks_place_id")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_tasks_team_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
    )
    op.create_index(
        "ix_tasks_delivering", "tasks", ["grace_until"], unique=False, postgresql_where=sa.text("state = 'delivering'")
    )
    op.create_index(
        "ix_tasks_doubtful", "tasks", ["sent_at"], unique=False, postgresql_where=sa.text("state = 'doubtful'")
    )
    op.create_index(
        "ix_tasks_open",
        "tasks",
        ["main_account", "region", "model", "state"],
        unique=False,
        postgresql_where=sa.text("state IN ('queued', 'submitting', 'doubtful', 'pending', 'running')"),
    )
    op.create_index(
        "ix_tasks_polled",
        "tasks",
        ["main_account", "region"],
        unique=False,
        postgresql_where=sa.text("state IN ('pending', 'running')"),
    )
    op.create_index(
        "ix_tasks_queued", "tasks", ["queue_deadline_at"], unique=False, postgresql_where=sa.text("state = 'queued'")
    )
    op.create_index(
        "ix_tasks_team_id_created_at", "tasks", ["team_id", sa.literal_column("created_at DESC")], unique=False
    )
    op.create_index(
        "uq_tasks_upstream_task",
        "tasks",
        ["main_account", "region", "upstream_task_id"],
        unique=True,
        postgresql_where=sa.text("upstream_task_id IS NOT NULL"),
    )
    op.create_table(
        "assets",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("json_path", sa.Text(), nullable=False),
        sa.Column("source", sa.LargeBinary(), nullable=False),
        sa.Column("source_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("place_id", sa.Uuid(), nullable=True),
        sa.Column("object_key", sa.Text(), nullable=True),
        sa.Column("content_type", sa.Text(), nullable=True),
        sa.Column("size_bytes", sa.BigInteger(), nullable=True),
        sa.Column("sha256", sa.Text(), nullable=True),
        sa.Column("stored_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "(state = 'stored') = (stored_at IS NOT NULL) AND (stored_at IS NULL OR (object_key IS NOT NULL AND sha256 IS NOT NULL AND size_bytes IS NOT NULL AND content_type IS NOT NULL))",
            name=op.f("ck_assets_stored_is_known"),
        ),
        sa.CheckConstraint(
            "state IN ('waiting', 'stored', 'held', 'blocked', 'given_up')", name=op.f("ck_assets_state_known")
        ),
        sa.ForeignKeyConstraint(["place_id"], ["places.id"], name=op.f("fk_assets_place_id")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_assets_task_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_assets_team_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_assets")),
        sa.UniqueConstraint("task_id", "position", name=op.f("uq_assets_task_id_position")),
    )
    op.create_index(
        "uq_assets_object",
        "assets",
        ["place_id", "object_key"],
        unique=True,
        postgresql_where=sa.text("object_key IS NOT NULL"),
    )
    op.create_table(
        "task_bodies",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("headers", postgresql.JSONB(astext_type=sa.Text()), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=True),
        sa.Column("forget_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("answer", sa.LargeBinary(), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_bodies_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", name=op.f("pk_task_bodies")),
    )
    op.create_index(
        "ix_task_bodies_forget_at",
        "task_bodies",
        ["forget_at"],
        unique=False,
        postgresql_where=sa.text("request IS NOT NULL"),
    )
    op.create_table(
        "task_events",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), server_default=sa.text("clock_timestamp()"), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_task_events_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "attempt", "state", name=op.f("pk_task_events")),
    )
    # ### the ledger refuses change, whoever asks ###
    op.execute(APPEND_ONLY)
    op.execute(
        "CREATE TRIGGER ledger_entries_append_only BEFORE UPDATE OR DELETE ON ledger_entries"
        " FOR EACH ROW EXECUTE FUNCTION refuse_change()"
    )
    op.execute(
        "CREATE TRIGGER ledger_entries_no_truncate BEFORE TRUNCATE ON ledger_entries"
        " FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()"
    )
