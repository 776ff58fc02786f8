"""The engine: fair queues and their positions, pace after refusals, doubts and their evidence, caps of teams

Revision: 20261123_the_engine
After: 20261123_the_surface
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "20261123_the_engine"
down_revision = "20261123_the_surface"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "queue_positions",
        sa.Column("main_account", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("ids", postgresql.ARRAY(sa.Uuid()), nullable=False),
        sa.Column("places", postgresql.ARRAY(sa.Integer()), nullable=False),
        sa.Column("seconds_each", sa.Double(), nullable=False),
        sa.Column("taken_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_queue_positions_team_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("main_account", "region", "model", "team_id", name=op.f("pk_queue_positions")),
    )
    op.create_table(
        "queue_turns",
        sa.Column("main_account", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("team_id", sa.Uuid(), nullable=False),
        sa.Column("served", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(["team_id"], ["teams.id"], name=op.f("fk_queue_turns_team_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("main_account", "region", "model", "team_id", name=op.f("pk_queue_turns")),
        postgresql_with={"fillfactor": "50"},
    )
    op.create_table(
        "doubts",
        sa.Column("task_id", sa.Uuid(), nullable=False),
        sa.Column("attempt", sa.Integer(), nullable=False),
        sa.Column("main_account", sa.Text(), nullable=False),
        sa.Column("region", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("account_key_id", sa.Uuid(), nullable=True),
        sa.Column("request_id", sa.Text(), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("call_deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("next_look_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("looked_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("absent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column(
            "candidates", postgresql.JSONB(astext_type=sa.Text()), server_default=sa.text("'[]'"), nullable=False
        ),
        sa.Column("verdict", sa.Text(), nullable=True),
        sa.Column("settled_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "verdict IN ('adopted', 'absent', 'refused', 'unknown', 'answered')", name=op.f("ck_doubts_verdict_known")
        ),
        sa.CheckConstraint(
            "(verdict IS NOT NULL) = (settled_at IS NOT NULL)", name=op.f("ck_doubts_settled_iff_verdict")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_doubts_task_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("task_id", "attempt", name=op.f("pk_doubts")),
    )
    op.create_index(
        "ix_doubts_open",
        "doubts",
        ["main_account", "region", "next_look_at"],
        unique=False,
        postgresql_where=sa.text("verdict IS NULL"),
    )
    op.create_index("ix_doubts_window", "doubts", ["main_account", "region", "model", "sent_at"], unique=False)
    op.add_column("account_models", sa.Column("slowed_to", sa.Numeric(precision=18, scale=6), nullable=True))
    op.add_column("account_models", sa.Column("slowed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("account_models", sa.Column("turn", sa.Double(), server_default="0", nullable=False))
    op.add_column("tasks", sa.Column("oddity", sa.Text(), nullable=True))
    op.create_index(
        "ix_tasks_queue",
        "tasks",
        ["team_id", "main_account", "region", "model", "id"],
        unique=False,
        postgresql_where=sa.text("state = 'queued'"),
    )
    op.add_column("teams", sa.Column("weight", sa.Integer(), server_default="1", nullable=False))
    op.add_column("teams", sa.Column("max_queued", sa.Integer(), nullable=True))
    op.add_column("teams", sa.Column("queue_deadline_seconds", sa.Integer(), nullable=True))
    op.add_column("teams", sa.Column("resubmit", sa.Boolean(), server_default=sa.text("false"), nullable=False))
    op.create_index(
        "ix_work_waited",
        "work",
        ["team_id", "key"],
        unique=False,
        postgresql_where=sa.text("kind = 'submit' AND priority > 0"),
    )
    op.create_check_constraint(op.f("ck_teams_weight_positive"), "teams", "weight > 0")
    op.create_check_constraint(op.f("ck_teams_caps_positive"), "teams", "max_queued > 0 AND queue_deadline_seconds > 0")
    # doubts that are open already: their senders are gone, so each lasts to the deadline of its call
    op.execute("""
        INSERT INTO doubts (task_id, attempt, main_account, region, model, account_key_id, request_id,
                            sent_at, ends_at, call_deadline_at, next_look_at)
        SELECT id, attempt, main_account, region, model, account_key_id, upstream_request_id,
               sent_at, call_deadline_at, call_deadline_at, now()
        FROM tasks WHERE state = 'doubtful' AND sent_at IS NOT NULL AND call_deadline_at IS NOT NULL
    """)
