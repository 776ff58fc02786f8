"""Every query names the team whose rows it may see, or says in its name that it sees all of them (design.md 4)."""

import ast

import pytest

from tests.house.source import (
    Function,
    Module,
    dotted_name,
    elsewhere,
    imports,
    module,
    parameters,
    public_functions,
    uses,
)

ROOMS = ("teams", "tasks", "delivery", "ledger", "webhooks")
STORES = (
    *(module(f"app/{room}/store.py") for room in ROOMS),
    module("app/tasks/store_reads.py"),
    module("app/tasks/store_resends.py"),
    module("app/tasks/store_polled.py"),
    module("app/tasks/store_queue.py"),
    module("app/tasks/store_doubts.py"),
)

READING = {"sqlalchemy.select", "sqlalchemy.update", "sqlalchemy.delete"}

# Queries without a team, each with its reason. They name rows that a step holds already, by a claim, a lock or an
# attempt, or rows that belong to no team; none takes an id that came from a caller.
WITHOUT_A_TEAM = {
    # the life of a task: the step claimed its work, or read it over all teams, and changes it by id and attempt
    "tasks.record_receipt": "by id and attempt: the sender holds the lease, and a fact is recorded whoever has it",
    "tasks.has_receipt": "by id and upstream task id: did our own receipt arrive before the connection broke?",
    "tasks.move": "by id, attempt and state: the one compare-and-set of every step",
    "tasks.mark_submitting": "by the ids that claim_queued_all_teams locked",
    "tasks.note_key": "by id and attempt: its sender calls once more with another key",
    "tasks.note_oddity": "by id and attempt: the owner of the account has just looked at it",
    "tasks.mark_poisoned": "by the id of the asset whose work the worker has claimed",
    "tasks.mark_stolen": "by upstream task id: whose it is, is just what nobody knows",
    "tasks.has_unsettled_assets": "by the id of the task that the step has locked",
    "tasks.forget_later": "by the id of the task that finish has just ended",
    "tasks.write_answer": "by the id of the task that outcome has just moved",
    "tasks.read_answers": "each task is asked for together with its team, many at a time",
    "tasks.lock_work": "work of one task, before the task is locked",
    "tasks.rehome": "by the key that claim_homeless_all_teams locked",
    "tasks.note_usage": "by id and attempt: the pump of just this stream",
    "tasks.read_streamed": "by the id of the task that was given up in this transaction",
    # doubts: read over all teams by the owner of the account, and changed by id and attempt
    "tasks.open_doubt": "by the id of the task that was moved to doubtful in this transaction",
    "tasks.insert_orphans": "upstream tasks that are nobody's",
    "tasks.note_look": "by id and attempt: what the list said of a doubt",
    "tasks.postpone": "by ids and attempts: their list could not be read",
    "tasks.adopt": "by id, attempt and state: the list has shown its task",
    "tasks.close_doubt": "by id and attempt, in the transaction that ends the doubt",
    "tasks.count_lost_senders": "by the id that lock_doubtful_all_teams locked",
    "tasks.read_key_ids": "upstream keys belong to no team",
    "tasks.learn_key_id": "upstream keys belong to no team",
    # resends: a task is found by its team's key, or by the API key that made it
    "tasks.adopt_unanswered": "by API key and request hash: the very caller that was never answered",
    "tasks.mark_left": "by the id of the task whose caller has just left its connection",
    "tasks.wait_on": "by the ids of the tasks that are waited for on this process's connections",
    "tasks.mark_answered": "by the id of the task whose answer was just handed over",
    "tasks.mark_unanswered_if_waited": "by the ids that claim_lapsed_all_teams locked",
    # the team itself is what is looked for
    "teams.find_team": "by its slug, for the operator's commands",
}


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.dotted)
def test_a_query_takes_a_team_or_says_that_it_sees_all_teams(store: Module) -> None:
    silent = [
        name
        for name, function in _queries(store)
        if not _takes_a_team(function)
        and not function.name.endswith("_all_teams")
        and not _only_inserts(store, function)
        and name not in WITHOUT_A_TEAM
    ]
    assert silent == []


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.dotted)
def test_a_query_over_all_teams_takes_no_team_id(store: Module) -> None:
    both = [
        name for name, function in _queries(store) if function.name.endswith("_all_teams") and _takes_a_team(function)
    ]
    assert both == []


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.dotted)
def test_a_team_id_that_a_query_takes_is_part_of_the_query(store: Module) -> None:
    unused = [
        name
        for name, function in _queries(store)
        if _takes_a_team(function)
        and not any(isinstance(node, ast.Name) and node.id == "team_id" for node in ast.walk(function))
    ]
    assert unused == []


def test_the_list_of_queries_without_a_team_names_only_what_exists_and_needs_it() -> None:
    needed = {
        name
        for store in STORES
        for name, function in _queries(store)
        if not _takes_a_team(function)
        and not function.name.endswith("_all_teams")
        and not _only_inserts(store, function)
    }
    assert set(WITHOUT_A_TEAM) - needed == set()


def test_only_the_operators_routes_call_a_query_over_all_teams() -> None:
    routes = (
        source for source in elsewhere("app/api/ops.py", "app/api/admin.py") if source.path.startswith("app/api/")
    )
    assert uses(routes, lambda name, _: name.endswith("_all_teams")) == []


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.dotted)
def test_every_query_is_told_its_session_first(store: Module) -> None:
    strangers = [
        function.name
        for function in public_functions(store)
        if isinstance(function, ast.AsyncFunctionDef) and parameters(function)[0][:1] != ["session"]
    ]
    assert strangers == []


def _queries(store: Module) -> list[tuple[str, Function]]:
    """Return a store's public queries under the names that the list above uses."""
    room = store.path.split("/")[1]
    return [
        (f"{room}.{function.name}", function)
        for function in public_functions(store)
        if isinstance(function, ast.AsyncFunctionDef)
    ]


def _takes_a_team(function: Function) -> bool:
    positional, keyword = parameters(function)
    return "team_id" in (*positional, *keyword)


def _only_inserts(store: Module, function: Function) -> bool:
    """Tell whether a query only adds rows: they carry their team as a column, and nobody's rows are read.

    An upsert of a sum whose key names the team is one too.
    """
    known = imports(store)
    called = {dotted_name(node.func, known) for node in ast.walk(function) if isinstance(node, ast.Call)}
    if not function.name.startswith(("insert_", "add_to_")) or called & READING:
        return False
    statements = [
        text for node in ast.walk(function) if isinstance(node, ast.Name) and (text := _statement(store, node.id))
    ]
    return all("INSERT INTO" in text and ":team_id" in text for text in statements)


def _statement(store: Module, name: str) -> str:
    """Return the SQL of one of the store's constants, or nothing when the name means something else."""
    for node in store.tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name:
            text = ast.get_source_segment(store.text, node) or ""
            return text if "text(" in text else ""
    return ""
