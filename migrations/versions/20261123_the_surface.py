"""The surface: resends, cancels, uploads, keys and weights of accounts, choices of teams

Revision: 20261123_the_surface
After: 20261122_first_schema
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261123_the_surface"
down_revision = "20261122_first_schema"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "idempotency_keys",
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_idempotency_keys_team_id")),
        sa.PrimaryKeyConstraint("team_id", "key", name=op.f("pk_idempotency_keys")),
    )
    op.create_index("ix_idempotency_keys_expires_at", "idempotency_keys", ["expires_at"], unique=False)
    op.create_table(
        "uploads",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("folder", sa.Text(), nullable=False),
        sa.Column("policy", sa.LargeBinary(), nullable=False),
        sa.Column("most_bytes", sa.BigInteger(), nullable=False),
        sa.Column("policy_expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.id"], name=op.f("fk_uploads_account_id")),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_uploads_team_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_uploads")),
    )
    op.create_index("ix_uploads_expires_at", "uploads", ["expires_at"], unique=False)
    op.create_index("uq_uploads_folder", "uploads", ["folder"], unique=True)
    op.create_table(
        "account_key_models",
        sa.Column("account_key_id", sa.Uuid(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("bad_until", sa.DateTime(timezone=True), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["account_key_id"],
            ["account_keys.id"],
            name=op.f("fk_account_key_models_account_key_id"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("account_key_id", "model", name=op.f("pk_account_key_models")),
    )
    op.add_column("account_keys", sa.Column("bad_reason", sa.Text(), nullable=True))
    op.add_column("account_keys", sa.Column("retired_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("accounts", sa.Column("weight", sa.Integer(), server_default="1", nullable=False))
    op.add_column("accounts", sa.Column("serving", sa.Text(), server_default="active", nullable=False))
    op.add_column("tasks", sa.Column("request_hash", sa.LargeBinary(), nullable=True))
    op.add_column("tasks", sa.Column("pinned", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column("tasks", sa.Column("seen_usage", postgresql.JSONB(astext_type=sa.Text()), nullable=True))
    op.add_column("tasks", sa.Column("answer_status", sa.Integer(), nullable=True))
    op.add_column("tasks", sa.Column("cancel_requested_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tasks", sa.Column("waited_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("tasks", sa.Column("unanswered_at", sa.DateTime(timezone=True), nullable=True))
    op.create_index(
        "ix_tasks_unanswered",
        "tasks",
        ["api_key_id", "request_hash"],
        unique=False,
        postgresql_where=sa.text("unanswered_at IS NOT NULL"),
    )
    op.create_index(
        "ix_tasks_waited", "tasks", ["waited_until"], unique=False, postgresql_where=sa.text("waited_until IS NOT NULL")
    )
    op.add_column("teams", sa.Column("durable", sa.Boolean(), server_default=sa.text("true"), nullable=False))
    op.add_column("teams", sa.Column("hold", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.add_column(
        "teams", sa.Column("allow_unlisted_models", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.add_column("teams", sa.Column("rps", sa.Numeric(precision=18, scale=6), nullable=True))
    op.create_check_constraint(
        op.f("ck_accounts_serving_known"), "accounts", "serving IN ('active', 'paused', 'draining')"
    )
    op.create_check_constraint(op.f("ck_accounts_weight_not_negative"), "accounts", "weight >= 0")
    op.create_check_constraint(op.f("ck_teams_rps_positive"), "teams", "rps > 0")
