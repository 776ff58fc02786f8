"""Rules of reach (design.md 4): what only one room, or one file, may do. Read from the source, run on nothing."""

import ast
import re
import subprocess
import sysconfig
from pathlib import Path

from tests.house.source import (
    ROOT,
    app_modules,
    elsewhere,
    imported_from,
    imports,
    method_calls,
    module,
    texts,
    uses,
)

STORES = tuple(source.path for source in app_modules() if re.search(r"/store(_[a-z]+)?\.py$", source.path))
# What says nothing to a database: the type of a row, and the names of errors.
HARMLESS = re.compile(r"sqlalchemy\.(RowMapping|exc\..*)|asyncpg(\.(\w+Error|exceptions.*))?")
SQL_METHODS = ("execute", "executemany", "scalar", "scalars", "exec_driver_sql", "run_sync", "fetchrow", "fetchval")
SQL_WORDS = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|WITH|CREATE|ALTER|DROP|TRUNCATE|LOCK)\s")
ENDINGS = {"SUCCEEDED", "FAILED", "CANCELED", "EXPIRED"}
SIMULATOR_CLOCK = "app/simulator/clock.py"  # a product of its own: its time is real time, scaled and moved
IDS = "app/lib/ids.py"  # the milliseconds of a UUIDv7 order rows; nothing is decided by them


def test_imports_only_go_down() -> None:
    linter = Path(sysconfig.get_path("scripts"), "lint-imports")
    checked = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_every_room_of_the_app_is_in_the_import_contract() -> None:
    contract = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    rooms = {
        path.name.removesuffix(".py")
        for path in (ROOT / "app").iterdir()
        if (path.is_dir() and any(path.glob("*.py"))) or path.suffix == ".py"
    } - {"__init__"}
    assert [room for room in sorted(rooms) if not re.search(rf'app\.{room}["\s]', contract)] == []


def test_sql_is_written_only_in_the_stores() -> None:
    allowed = (*STORES, "app/lib/leases.py", "app/lib/db.py", "app/models/")
    words = [
        source.at(node, name)
        for source in elsewhere(*allowed)
        for node, name in imported_from(source)
        if name.startswith(("sqlalchemy", "asyncpg")) and not HARMLESS.fullmatch(name)
    ]
    assert words == []


def test_nobody_connects_to_the_database_past_its_door() -> None:
    def connects(name: str, _: ast.AST) -> bool:
        return name in ("asyncpg.connect", "asyncpg.create_pool") or name.endswith(".create_async_engine")

    assert uses(elsewhere("app/lib/db.py"), connects) == []


def test_the_door_to_the_database_says_no_sql_itself() -> None:
    assert [text.lineno for text in texts(module("app/lib/db.py")) if SQL_WORDS.match(text.value)] == []


def test_statements_are_made_and_run_only_in_the_stores() -> None:
    allowed = (*STORES, "app/lib/leases.py")
    door = {"app.lib.db.Statement", "app.lib.db.fetch", "app.lib.db.run"}
    makes = [
        source.at(node, name) for source in elsewhere(*allowed) for node, name in imported_from(source) if name in door
    ]
    runs = [
        source.at(call, ast.unparse(call.func))
        for source in elsewhere(*allowed, "app/lib/db.py", "app/models/migrating.py")
        for call in method_calls(source, *SQL_METHODS)
    ]
    assert makes + runs == []


def test_only_the_door_to_the_database_commits() -> None:
    commits = [
        source.at(call, "commits")
        for source in elsewhere("app/lib/db.py")
        for call in method_calls(source, "commit", "rollback", "begin_nested", "begin", "transaction")
        if not _begins_something_else(call)
    ]
    assert commits == []


def test_only_the_settings_read_the_environment() -> None:
    def reads(name: str, _: ast.AST) -> bool:
        return name.startswith(("os.environ", "os.getenv", "os.putenv", "os.path.expandvars", "pydantic_settings"))

    assert uses(elsewhere("app/settings.py"), reads) == []


def test_no_command_takes_an_option_from_the_environment_behind_the_settings() -> None:
    options = [
        source.at(node, "envvar")
        for source in app_modules()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.keyword) and node.arg in ("envvar", "auto_envvar_prefix")
    ]
    assert options == []


def test_only_the_clock_reads_the_wall_clock() -> None:
    wall = re.compile(
        r"(datetime\.)?(datetime|date)\.(now|utcnow|today)|time\.(time|time_ns|gmtime|localtime|strftime)"
    )
    reads = uses(
        elsewhere("app/lib/clock.py", IDS, SIMULATOR_CLOCK),
        lambda name, node: isinstance(node, ast.Attribute | ast.Name) and wall.fullmatch(name) is not None,
    )
    assert reads == []


def test_http_clients_are_made_only_at_the_one_door() -> None:
    makers = re.compile(
        r"httpx\.(AsyncClient|Client|AsyncHTTPTransport|HTTPTransport|get|post|put|patch|delete|head|request|stream)"
        r"|aiohttp\.(ClientSession|TCPConnector|request)|urllib\.request\.\w+|urllib3\..*|requests\..*|http\.client\..*"
        r"|httpx_aiohttp\..*"
    )
    made = []
    for source in elsewhere("app/lib/http.py"):
        known = imports(source)
        made += uses(
            iter([source]), lambda name, node: isinstance(node, ast.Name) and makers.fullmatch(name) is not None
        )
        made += [
            source.at(node, "makes a client")
            for node in ast.walk(source.tree)
            if isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and makers.fullmatch(f"{known.get(node.func.value.id)}.{node.func.attr}")
        ]
    assert made == []


def test_only_the_upstream_client_knows_the_path_of_tasks() -> None:
    served = "/api/v1/tasks"  # our own route, in front of the same path
    paths = [
        source.at(text, text.value)
        for source in elsewhere("app/upstream/client.py", "app/simulator/")
        for text in texts(source)
        if re.fullmatch(r"(/api/v1)?/tasks\b\S*", text.value)
        and not (source.path.startswith("app/api/") and text.value.startswith(served))
    ]
    assert paths == []


def test_only_the_owner_of_an_account_asks_about_its_tasks() -> None:
    asked = [
        source.at(call, "asks")
        for source in elsewhere("app/tasks/look.py", "app/tasks/doubts.py", "app/simulator/")
        for call in method_calls(source, "look", "cancel_task")
    ]
    assert asked == []


def test_only_the_owner_and_doctor_read_the_upstreams_list() -> None:
    listed = [
        source.at(call, "lists")
        for source in elsewhere("app/tasks/look.py", "app/tasks/listing_upstream.py", "app/cli/account_checks.py")
        for call in method_calls(source, "list_tasks")
        if not source.path.startswith("app/simulator/")
    ]
    assert listed == []


def test_only_outcome_records_what_the_upstream_made() -> None:
    records = ("record_usage", "record_presumed", "insert_assets")
    assert _users_of(*records) == {"app/tasks/outcome.py"}
    assert _users_of("write_answer") == {"app/tasks/keep.py"}


def test_only_a_task_given_up_is_recorded_as_uncertain() -> None:
    assert _users_of("record_uncertain") == {"app/tasks/outcome.py"}
    assert _users_of("end_unknown") == {f"app/tasks/{step}.py" for step in ("call", "rescue")}


def test_only_finish_moves_a_task_to_its_end() -> None:
    ends = [
        source.at(call, "moves a task to an end")
        for source in elsewhere("app/tasks/finish.py")
        for call in method_calls(source, "move")
        if not _is_open_state(call.args[2])
    ]
    assert ends == []


def test_only_finish_says_when_a_task_ended() -> None:
    said = [
        source.at(node, "finished_at=")
        for source in elsewhere("app/tasks/finish.py")
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call)
        and any(word.arg == "finished_at" for word in node.keywords)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("move", "values")
    ]
    assert said == []


def test_no_statement_writes_a_final_state_by_name() -> None:
    writes = re.compile(rf"set\b[^;]*\bstate\s*=\s*'({'|'.join(ENDINGS)})'", re.IGNORECASE)
    written = [
        source.at(text, "writes a final state")
        for source in app_modules()
        for text in texts(source)
        if not source.path.startswith("app/simulator/") and writes.search(text.value)
    ]
    assert written == []


def test_only_finish_tells_a_team_that_its_task_ended() -> None:
    assert _users_of("tell_end") == {"app/tasks/finish.py"}


def test_metrics_are_declared_only_in_their_one_file() -> None:
    declares = [
        source.at(node, name)
        for source in elsewhere("app/lib/metrics.py")
        for node, name in imported_from(source)
        if name.startswith("prometheus_client")
    ]
    assert declares == []


def test_the_simulator_imports_nothing_of_the_app() -> None:
    foreign = [
        source.at(node, name)
        for source in app_modules()
        if source.path.startswith("app/simulator/")
        for node, name in imported_from(source)
        if name.startswith("app.") and not name.startswith("app.simulator")
    ]
    assert foreign == []


def test_only_the_command_line_imports_the_simulator() -> None:
    users = [
        source.at(node, name)
        for source in elsewhere("app/simulator/", "app/cli/")
        for node, name in imported_from(source)
        if name.startswith("app.simulator")
    ]
    assert users == []


def test_the_stores_are_where_the_rules_look_for_them() -> None:
    assert {Path(path).parent.name for path in STORES} == {
        *("teams", "tasks", "delivery", "ledger", "webhooks"),
        *("routing", "models", "cli"),  # accounts, the installation and the server itself belong to no team
    }


def _users_of(*names: str) -> set[str]:
    """Return the files that name any of these functions, but for the files that define them."""
    users = set()
    for source in app_modules():
        defined = {node.name for node in source.tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        named = {node.attr for node in ast.walk(source.tree) if isinstance(node, ast.Attribute)}
        named |= {node.id for node in ast.walk(source.tree) if isinstance(node, ast.Name)}
        if (named & set(names)) - defined:
            users.add(source.path)
    return users


def _begins_something_else(call: ast.Call) -> bool:
    """Tell whether `x.begin()` is said of anything but a session, a connection or an engine."""
    said = ast.unparse(call.func)
    return said.endswith(".begin") and not re.search(r"(session|connection|engine|sync)\.begin$", said)


def _is_open_state(node: ast.expr) -> bool:
    """Tell whether an argument names, in so many words, a state that is no end."""
    return isinstance(node, ast.Attribute) and node.attr.isupper() and node.attr not in ENDINGS
