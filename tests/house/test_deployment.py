"""The deployment files name only what exists, pin what they run, and keep secrets where they belong.

No container engine is needed: the files are read, and the entrypoint is run against a stub.
"""

import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import main, worker
from app.settings import Settings
from tests.house.source import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, Any] = COMPOSE["services"]
DOCKERFILE = (ROOT / "docker/Dockerfile").read_text(encoding="utf-8")
EXAMPLE = (ROOT / "docker/.env.example").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

OURS = [name for name, service in SERVICES.items() if service["image"].startswith("dashgate:")]
SETTINGS = {f"DASHGATE_{name.upper()}" for name in Settings.model_fields}
SECRETS = (
    "DASHGATE_SECRET_KEY",
    "DASHGATE_ADMIN_TOKEN",
    "POSTGRES_PASSWORD",
    "S3_ACCESS_KEY_ID",
    "S3_SECRET_ACCESS_KEY",
)
EXACT = re.compile(r"[a-z0-9/._-]+:v?\d+\.\d+(\.\d+)?(-[a-z0-9.-]+)?")
WAITING = {"service_healthy", "service_completed_successfully"}

FILES = ("docker-compose.yml", "docker/.env.example", "docker/Dockerfile", "docker/entrypoint")


@pytest.mark.parametrize("file", FILES)
def test_a_deployment_file_names_only_settings_that_exist(file: str) -> None:
    named = set(re.findall(r"DASHGATE_[A-Z_]+[A-Z]", (ROOT / file).read_text(encoding="utf-8")))
    assert named - SETTINGS == set()


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_by_an_exact_tag(name: str) -> None:
    assert EXACT.fullmatch(SERVICES[name]["image"])


def test_the_image_of_the_app_has_the_version_of_the_project() -> None:
    assert {SERVICES[name]["image"] for name in OURS} == {f"dashgate:{PROJECT['version']}"}


def test_both_stages_of_the_dockerfile_stand_on_one_exact_python() -> None:
    bases = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert len(bases) == 2
    assert len(set(bases)) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases[0])


def test_the_dockerfile_copies_only_what_exists() -> None:
    sources = _copied()
    assert {"app", "migrations", "docker/requirements.lock", "docker/entrypoint"} <= set(sources)
    assert [source for source in sources if not (ROOT / source).exists()] == []


def test_the_migrations_are_where_the_app_looks_for_them() -> None:
    python = re.search(r"FROM python:(\d+\.\d+)", DOCKERFILE)
    assert python
    assert f"COPY migrations /opt/dashgate/lib/python{python[1]}/site-packages/migrations" in DOCKERFILE


def test_everything_installed_into_the_image_is_checked_by_its_hash() -> None:
    installs = re.findall(r"pip install [^\n&]*", DOCKERFILE)
    assert len(installs) == 3
    assert [line for line in installs if "--require-hashes" not in line and "--no-deps --no-index" not in line] == []


def test_the_pin_of_setuptools_is_cut_out_of_the_development_lock_whole(tmp_path: Path) -> None:
    command = re.search(r"RUN (sed -n '.*?' development\.lock)", DOCKERFILE)
    assert command
    (tmp_path / "development.lock").write_text((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    cut = subprocess.run(["sh", "-c", command[1]], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert list(_pins(cut)) == ["setuptools"]
    assert cut.count("--hash=sha256:") >= 1
    assert not cut.rstrip().endswith("\\")


def test_the_image_runs_as_nobody_in_particular() -> None:
    users = re.findall(r"^USER (\S+)", DOCKERFILE, re.MULTILINE)
    assert users == ["10001:10001"]


def test_the_image_is_started_by_our_entrypoint_and_serves_by_default() -> None:
    copied_to = re.search(r"docker/entrypoint \S*/(\S+)", DOCKERFILE)
    assert copied_to
    assert f'ENTRYPOINT ["{copied_to[1]}"]' in DOCKERFILE
    assert 'CMD ["serve"]' in DOCKERFILE


def test_the_image_installs_nothing_that_was_not_developed_with() -> None:
    ours = _pins((ROOT / "docker/requirements.lock").read_text(encoding="utf-8"))
    known = _pins((ROOT / "requirements.lock").read_text(encoding="utf-8"))
    assert ours
    assert {name: version for name, version in ours.items() if known.get(name) != version} == {}


def test_the_image_installs_every_dependency_of_the_project() -> None:
    wanted = {re.split(r"[\[<>=!~ ]", line)[0].lower() for line in PROJECT["dependencies"]}
    assert wanted - set(_pins((ROOT / "docker/requirements.lock").read_text(encoding="utf-8"))) == set()


@pytest.mark.parametrize(
    ("arguments", "executed"),
    [
        ([], "serve --host 0.0.0.0"),
        (["serve"], "serve --host 0.0.0.0"),
        (["serve", "--port", "9000"], "serve --host 0.0.0.0 --port 9000"),
        (["simulator", "--calm"], "simulator --host 0.0.0.0 --calm"),
        (["worker"], "worker"),
        (["migrate", "--json"], "migrate --json"),
        (["doctor"], "doctor"),
        (["team", "create", "alpha beta"], "team create alpha beta"),
    ],
)
def test_the_entrypoint_becomes_the_command(tmp_path: Path, arguments: list[str], executed: str) -> None:
    assert _entrypoint(tmp_path, arguments).splitlines()[1] == executed


def test_the_entrypoint_leaves_no_shell_between_the_container_and_the_command(tmp_path: Path) -> None:
    started, _, _ = _entrypoint(tmp_path, ["serve"]).split("\n", 2)
    assert started == "same process"


def test_an_argument_with_blanks_stays_one_argument(tmp_path: Path) -> None:
    assert _entrypoint(tmp_path, ["key", "create", "a b"]).splitlines()[2] == "3 arguments"


def test_the_entrypoint_may_be_executed() -> None:
    assert (ROOT / "docker/entrypoint").stat().st_mode & 0o111


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_empty_in_the_example(name: str) -> None:
    assert re.findall(rf"^{name}=(.*)$", EXAMPLE, re.MULTILINE) == [""]


def test_the_example_has_everything_that_compose_asks_for() -> None:
    asked = set(re.findall(r"(?<!\$)\$\{([A-Z0-9_]+)", (ROOT / "docker-compose.yml").read_text(encoding="utf-8")))
    assert asked - set(re.findall(r"^([A-Z0-9_]+)=", EXAMPLE, re.MULTILINE)) == set()


def test_the_example_shows_true_defaults() -> None:
    shown = dict(re.findall(r"^# DASHGATE_([A-Z_]+)=([A-Za-z0-9_/]+)$", EXAMPLE, re.MULTILINE))
    numbers = {name: value for name, value in shown.items() if not value.startswith("/")}  # the others are examples
    assert len(numbers) > 5
    assert numbers == {name: str(Settings.model_fields[name.lower()].default) for name in numbers}


def test_the_example_says_production_and_nothing_weaker() -> None:
    assert re.search(r"^DASHGATE_ENVIRONMENT=production$", EXAMPLE, re.MULTILINE)


def test_compose_holds_no_secret_itself() -> None:
    text = (ROOT / "docker-compose.yml").read_text(encoding="utf-8")
    said = re.findall(r"^\s+\w*(?:PASSWORD|SECRET|TOKEN|KEY_ID)\w*: (.+)$", text, re.MULTILINE)
    assert said
    assert [value for value in said if not value.startswith("${")] == []


def test_the_operators_surface_is_bound_to_the_hosts_loopback() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert [port for port in published if port.endswith(":8081")] == ["127.0.0.1:8081:8081"]
    assert SERVICES["api"]["environment"]["DASHGATE_OPERATORS_LISTEN"] == "0.0.0.0:8081"


def test_nothing_but_the_teams_surface_can_be_published_to_the_network() -> None:
    published = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert {port for port in published if not port.startswith("127.0.0.1:")} == {"${TEAMS_LISTEN:-127.0.0.1:8080}:8080"}


def test_nothing_of_ours_starts_before_the_database_is_migrated() -> None:
    assert SERVICES["migrate"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    for name in ("api", "worker"):
        assert SERVICES[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}


def test_every_service_waits_only_for_services_that_can_become_ready() -> None:
    for service in SERVICES.values():
        for name, wait in service.get("depends_on", {}).items():
            assert wait["condition"] in WAITING
            assert wait["condition"] != "service_healthy" or "healthcheck" in SERVICES[name]


def test_the_api_is_healthy_when_it_is_ready() -> None:
    assert "/readyz" in " ".join(SERVICES["api"]["healthcheck"]["test"])


@pytest.mark.parametrize("name", ["api", "worker"])
def test_a_process_has_the_time_it_takes_to_stop(name: str) -> None:
    """What is on the wire ends within its time-out, which is within the drain; only then may the kill come."""
    drain, relay = (Settings.model_fields[f"{name}_seconds"].default for name in ("drain", "relay_timeout"))
    assert _seconds(SERVICES[name]["stop_grace_period"]) >= drain + max(main.STOP_SECONDS, worker.STOP_SECONDS)
    assert drain > relay


@pytest.mark.parametrize("name", OURS)
def test_a_process_of_ours_can_do_little_to_its_host(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_simulator_runs_only_when_asked_and_is_a_little_hostile() -> None:
    simulator = SERVICES["simulator"]
    assert simulator["profiles"] == ["demo"]
    assert "--hostile" in simulator["command"]
    assert "--calm" not in simulator["command"]


def test_the_simulator_takes_a_missing_environment_for_production() -> None:
    assert SERVICES["simulator"]["environment"] == {"DASHGATE_ENVIRONMENT": "${DASHGATE_ENVIRONMENT:-production}"}


def test_the_simulator_is_told_no_secret() -> None:
    assert "env_file" not in SERVICES["simulator"]


def test_the_s3_server_checks_signatures() -> None:
    assert "--auth-key" in " ".join(SERVICES["s3"]["command"])


def test_every_volume_is_declared_and_used() -> None:
    used = {volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", [])}
    assert used == set(COMPOSE["volumes"])


def test_the_commands_that_compose_runs_exist() -> None:
    from app.cli import app

    known = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert {SERVICES[name]["command"][0] for name in OURS} - known == set()


@pytest.mark.parametrize(
    "secret",
    [
        *(".env", ".env.production", "docker/.env", "app/.env", ".dashgate/secret.key", ".git/config", "app/tls.pem"),
        *(".venv/bin/python", "tests/conftest.py", "app/__pycache__/x.pyc", "docker-compose.yml"),
    ],
)
def test_the_builder_never_sees(secret: str) -> None:
    assert _is_ignored(secret)


def test_the_builder_sees_all_that_is_copied() -> None:
    assert [source for source in _copied() if _is_ignored(source)] == []
    assert not _is_ignored("app/routing/catalogue.toml")


def test_git_never_sees_a_filled_in_environment() -> None:
    checked = subprocess.run(["git", "check-ignore", "--quiet", ".env"], cwd=ROOT, check=False)
    assert checked.returncode == 0


def _copied() -> list[str]:
    """Return what the Dockerfile copies from the repository."""
    lines = re.findall(r"^COPY (?!--from)(?:--\S+ )*(.+) \S+$", DOCKERFILE, re.MULTILINE)
    return [source for line in lines for source in line.split()]


def _pins(lock: str) -> dict[str, str]:
    """Return what a lock pins on Linux."""
    linux = "\n".join(line for line in lock.splitlines() if "sys_platform == 'win32'" not in line)
    return dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", linux, re.MULTILINE))


def _seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def _entrypoint(folder: Path, arguments: list[str]) -> str:
    """Run the entrypoint as it stands with a stub in the command's place; return what the stub saw."""
    stub = folder / "dashgate"
    stub.write_text('#!/bin/sh\n[ "$$" = "$STARTED" ] && echo same process\necho "$*"\necho "$# arguments"\n')
    stub.chmod(0o755)
    start = ["sh", "-c", 'export STARTED=$$; exec "$0" "$@"', str(ROOT / "docker/entrypoint"), *arguments]
    environment = {"PATH": f"{folder}:/usr/bin:/bin"}
    return subprocess.run(start, env=environment, capture_output=True, text=True, check=True).stdout


def _is_ignored(path: str) -> bool:
    """Judge a path as a builder does: the last pattern that matches it, or a folder above it, decides."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        said = re.escape(pattern.removeprefix("!")).replace(r"\*\*/", "(.*/)?").replace(r"\*", "[^/]*")
        if re.match(rf"{said}(/|$)", path):
            ignored = not pattern.startswith("!")
    return ignored
