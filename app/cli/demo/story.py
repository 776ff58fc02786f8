"""Tells the demo's story on the terminal, or, with --json, as one document at its end."""

from __future__ import annotations

from dataclasses import asdict
from textwrap import dedent
from typing import TYPE_CHECKING, Any

from rich.text import Text

from app.cli import console
from app.cli.usage import usage_table
from app.lib.clock import seconds_between

if TYPE_CHECKING:
    from app.cli.demo.journey import File, Journey, Passed
    from app.cli.demo.stage import Stage

MODEL_BODY = (
    '{"model": "wan2.6-image", "input": {"messages": [{"role": "user", "content": [{"text": "a red kite"}]}]},'
    ' "parameters": {"enable_interleave": true, "n": 1, "max_images": 1}}'
)
HASH_CHARS = 16


class Story:
    """What the terminal shows. Silent with --json until the end."""

    def __init__(self, *, as_json: bool) -> None:
        self._as_json = as_json
        self._out = console.console(quiet=as_json)

    def begin(self, stage: Stage) -> None:
        """Show the stage."""
        settings = stage.res.settings
        self._title("Dashgate demo")
        self._fact("upstream", stage.upstream.told)
        self._fact("database", f"Postgres at schema {stage.schema}, files in {settings.state_dir}")
        self._fact("gateway", stage.base_url)
        self._fact("team", f"demo, pictures go to {stage.folder}")
        self._fact("logs", str(settings.state_dir / "demo.log"))

    def asked(self, task_id: str) -> None:
        """Say that the SDK has a task."""
        self._title("The vendor's SDK asks for pictures, and the gateway answers with a task")
        self._fact("task", task_id)
        self._line("")

    def passed(self, state: Passed, first: Passed) -> None:
        """Show a state and when it came, as Postgres has it."""
        since = seconds_between(first.at, state.at)
        why = f"  {state.reason}" if state.reason else ""
        self._line(f"  {state.at:%H:%M:%S} {since:+8.3f} s  {state.state:<11}{why}".rstrip(), style="green")

    def end(self, stage: Stage, journey: Journey, *, is_last: bool) -> None:
        """Show what came of it, and how to go on."""
        if self._as_json:
            going_on = {} if is_last else {"base_url": stage.base_url, "api_key": stage.api_key}
            console.show(console.Report({**document(journey), **going_on}), as_json=True)
            return
        if journey.files:
            self._show_answer(journey)
            self._show_files(stage, journey)
            self._title("Usage, as `dashgate usage report` tells it")
            self._out.print(usage_table(journey.usage))
        if journey.trouble is None:
            told = f"All is well: {len(journey.files)} files, the same from every side, billed once."
            self._line(told, style="bold green")
        else:
            told = f"Not as it should be: {journey.trouble}. See {stage.res.settings.state_dir / 'demo.log'}"
            self._line(told, style="bold red")
        self._show_way_on(stage, is_last=is_last)

    def _show_answer(self, journey: Journey) -> None:
        from app.cli.demo.journey import content_of

        self._title("What the SDK got")
        self._fact("states", " → ".join(journey.told))
        self._fact("usage", ", ".join(f"{name} {value}" for name, value in (journey.answer["usage"] or {}).items()))
        for item in content_of(journey.answer):
            self._fact("image" if item.get("image") else "text", str(item.get("image") or item.get("text")))

    def _show_files(self, stage: Stage, journey: Journey) -> None:
        self._title("Each file, from every side (SHA-256)")
        rows = [
            (file.path and file.path.name, file.size_bytes, *_sides(file), "yes" if file.is_same else "NO")
            for file in journey.files
        ]
        columns = ("file", "bytes", "behind the link", "in the folder", "in Postgres", "made upstream", "the same")
        self._out.print(console.table(columns, rows))
        for file in journey.files:
            self._line(f"  {file.path}")

    def _show_way_on(self, stage: Stage, *, is_last: bool) -> None:
        self._title("Run `dashgate demo` without --once to go on like this" if is_last else "Go on; Ctrl-C ends it")
        self._line(way_on(stage.base_url, stage.api_key))

    def _title(self, text: str) -> None:
        self._line("")
        self._line(text, style="bold")

    def _fact(self, name: str, value: str) -> None:
        self._out.print(Text(f"  {name:<9} ", style="dim") + Text(value, style="not dim"), soft_wrap=True)

    def _line(self, text: str, style: str = "") -> None:
        self._out.print(Text(text, style=style), soft_wrap=True)


def document(journey: Journey) -> dict[str, Any]:
    """Return the story as a document."""
    return {
        "task_id": journey.task_id,
        "states": [asdict(state) for state in journey.states],
        "told": journey.told,
        "links": [file.link for file in journey.files],
        "sha256s": [file.linked for file in journey.files],
        "files": [_file(file) for file in journey.files],
        "billed": journey.billed,
        "usage": journey.usage,
        "trouble": journey.trouble,
    }


def way_on(base_url: str, api_key: str) -> str:
    """Return what to paste into a shell and into Python."""
    return dedent(f"""
        curl -s {base_url}/services/aigc/image-generation/generation \\
          -H 'Authorization: Bearer {api_key}' -H 'Content-Type: application/json' -H 'X-DashScope-Async: enable' \\
          -d '{MODEL_BODY}'
        curl -s {base_url}/tasks/TASK_ID -H 'Authorization: Bearer {api_key}'

        import dashscope
        from dashscope.aigc.image_generation import ImageGeneration

        dashscope.base_http_api_url = "{base_url}"
        dashscope.api_key = "{api_key}"
        messages = [{{"role": "user", "content": [{{"text": "a red kite"}}]}}]
        task = ImageGeneration.async_call("wan2.6-image", messages=messages, enable_interleave=True, n=1, max_images=1)
        print(ImageGeneration.wait(task))
    """).rstrip()


def _file(file: File) -> dict[str, Any]:
    sides = {"link": file.linked, "folder": file.stored, "database": file.recorded, "upstream": file.made}
    return {"path": str(file.path), "size_bytes": file.size_bytes, "sha256": sides, "same": file.is_same}


def _sides(file: File) -> list[str | None]:
    """Return the heads of a file's hashes, in the order of the table's columns."""
    return [side and side[:HASH_CHARS] for side in (file.linked, file.stored, file.recorded, file.made)]
