"""`amk mcp`: the verb table as tools of the Model Context Protocol, over stdin and stdout.

In: requests of one client. Out: for each call the JSON object that `amk VERB --json` prints, or, where that takes
long, the job that makes it. Nothing but the protocol reaches the client's pipe: stdin and stdout are moved out of reach
before anything else is loaded, so that what any library or child prints goes to stderr. Jobs outlive the server.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import io
import json
import os
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Sequence
from typing import Any

from ..cli import parser_of, record_of, run_verb
from ..doctor import package_version
from ..errors import InputError, Unavailable
from ..verb import Outcome, Say, Verb
from ..verbs import VERBS
from .jobs import Job, JobStore, stop_waiting
from .tools import VerbTool, page_of, tools_of

__all__ = ["mcp_verb", "serve"]

POLL_S = 0.1

INSTRUCTIONS = """AMK compiles one LLM decode step into one persistent GPU kernel and searches its schedule.
Propose (amk_propose), edit the schedule_config within its search_space, judge it (amk_evaluate), or let amk_loop_start
search. A verdict's latency exists only if the result is correct; latency_kind says measured-gpu or predicted, and the
two are never compared. What takes long becomes a job: poll amk_job_status, read amk_job_result; jobs survive a restart
of this server, and amk_job_status without a job lists them."""


def mcp_verb(_: Namespace, say: Say) -> Outcome:
    """Serves until the client closes stdin."""
    if importlib.util.find_spec("mcp") is None:
        raise Unavailable('amk mcp needs the official MCP SDK: pip install "amk[agent]"')
    if sys.stdin is not None and sys.stdin.isatty():
        say("waiting for an MCP client on stdin")
    serve(VERBS)
    return Outcome(0, "OK")


def serve(table: Sequence[Verb], store: JobStore | None = None) -> None:
    """Speaks the protocol on this process's stdin and stdout, which it keeps: they are not given back."""
    wire_in, wire_out = take_wire()
    # An interrupt would wait for a thread that waits for stdin. Nothing is lost: every job is on disk.
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    anyio = importlib.import_module("anyio")
    try:
        anyio.run(_serve, table, JobStore() if store is None else store, wire_in, wire_out)
    finally:
        stop_waiting()  # a thread that waits for a job on behalf of a client that left


def take_wire() -> tuple[io.TextIOWrapper, io.TextIOWrapper]:
    """The client's two pipes as text; file descriptor 0 is at its end and 1 is stderr from now on."""
    try:
        wires = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3) for fd in (0, 1)]
    except OSError as error:
        raise InputError(f"amk mcp: expected a client on stdin and stdout, got {error.strerror}") from error
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    try:
        os.dup2(2, 1)
    except OSError:  # stderr is closed
        os.dup2(nothing, 1)
    os.close(nothing)
    reading = io.TextIOWrapper(os.fdopen(wires[0], "rb"), encoding="utf-8", errors="replace")
    return reading, io.TextIOWrapper(os.fdopen(wires[1], "wb"), encoding="utf-8")


async def _serve(table: Sequence[Verb], store: JobStore, wire_in: io.TextIOWrapper, wire_out: io.TextIOWrapper) -> None:
    import anyio
    from mcp import types
    from mcp.server import Server
    from mcp.server.stdio import stdio_server
    from mcp.shared.exceptions import MCPError

    tools = tools_of(table)
    listed = [_describe(types, tool) for tool in tools.values()]

    async def list_tools(_: Any, __: Any) -> Any:
        return types.ListToolsResult(tools=listed)

    async def call_tool(context: Any, params: Any) -> Any:
        tool = tools.get(params.name)
        if tool is None:
            raise MCPError(types.INVALID_PARAMS, f"unknown tool {params.name!r}; there are {', '.join(tools)}")
        record, meta = await _answer(tool, params.arguments, table, store, context)
        return types.CallToolResult(
            content=[types.TextContent(type="text", text=json.dumps(record, allow_nan=False))],
            structured_content=record,
            is_error=record["schema"] == "amk.error" or record["exit_code"] not in (0, 1),
            _meta=meta,
        )

    server: Any = Server(
        "amk",
        version=package_version(),
        instructions=INSTRUCTIONS,
        on_list_tools=list_tools,
        on_call_tool=call_tool,
    )
    async with stdio_server(anyio.wrap_file(wire_in), anyio.wrap_file(wire_out)) as streams:
        await server.run(*streams, server.create_initialization_options())


def _describe(types: Any, tool: VerbTool) -> Any:
    facts = tool.tool
    whole = {"type": "string"}, {"type": "integer"}
    return types.Tool(
        name=facts.name,
        description=facts.help,
        input_schema=tool.input_schema(),
        output_schema={
            "type": "object",
            "properties": {
                "schema": whole[0], "schema_version": whole[1], "status": whole[0], "exit_code": whole[1]
            },
            "required": ["schema", "schema_version", "status", "exit_code"],
        },
        annotations=types.ToolAnnotations(
            read_only_hint=facts.read_only,
            destructive_hint=facts.destructive,
            idempotent_hint=facts.idempotent,
            open_world_hint=False,
        ),
    )  # fmt: skip


async def _answer(
    tool: VerbTool, arguments: Any, table: Sequence[Verb], store: JobStore, context: Any
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """(the record, notes beside it); whatever goes wrong is a record too."""
    import anyio

    meta = None
    try:
        given = tool.read(arguments)
        if tool.tool.wait_s is None:
            record = await anyio.to_thread.run_sync(_answer_here, tool, given, table, abandon_on_cancel=True)
        else:
            job = await anyio.to_thread.run_sync(store.start, tool.tool.name, lambda folder: tool.argv(given, folder))
            job = await _follow(job, given["wait_s"], store, context)
            meta = {"amk/job": job.job}
            record = await anyio.to_thread.run_sync(_record_of_job, job, store)
        if tool.tool.paged:
            record = page_of(record, given["offset"], given["limit"])
        return record, meta
    except Exception as error:
        return _record_of_error(tool.verb, error), meta


async def _follow(job: Job, seconds: float, store: JobStore, context: Any) -> Job:
    """The job when it has ended or the time is over; its last words go to the client as they come."""
    import anyio

    until, said = anyio.current_time() + seconds, ""
    while not job.has_ended and anyio.current_time() < until:
        await anyio.sleep(POLL_S)
        job = await anyio.to_thread.run_sync(store.find, job.job)
        if job.progress and job.progress[-1] != said:
            said = job.progress[-1]
            await context.session.report_progress(job.elapsed_s, message=said)
    return job


def _answer_here(tool: VerbTool, given: dict[str, Any], table: Sequence[Verb]) -> dict[str, Any]:
    """As `amk VERB --json`, in this process: for verbs that answer at once."""
    with tempfile.TemporaryDirectory(prefix="amk-") as folder:
        argv = tool.argv(given, folder)
        try:
            arguments = parser_of(table).parse_args(argv)
        except SystemExit:
            raise InputError(f"{tool.tool.name}: expected arguments that `amk {tool.verb.name}` takes") from None
        arguments.emit = lambda text: None
        outcome, failed = run_verb(tool.verb, arguments, lambda text: None)
    return record_of(tool.verb, outcome, failed=failed)


def _record_of_job(job: Job, store: JobStore) -> dict[str, Any]:
    """What the job's verb printed; the job itself while there is nothing yet, and when there never will be."""
    result = store.result(job.job)
    if result is not None and job.state != "crashed":
        return result
    head = {"schema": "amk.jobs", "schema_version": 1, "status": job.state.upper()}
    if job.has_ended:
        error = {"code": "job-" + job.state, "message": f"job {job.job}: {job.error}"}
        return {**head, "schema": "amk.error", "exit_code": 70, "error": error, "job": job.to_dict()}
    return {**head, "exit_code": 0, "job": job.to_dict()}


def _record_of_error(verb: Verb, error: Exception) -> dict[str, Any]:
    def fail(*_: Any) -> Outcome:
        raise error

    outcome, failed = run_verb(Verb(verb.name, "", (), fail), Namespace(), lambda text: None)
    return record_of(verb, outcome, failed=failed)
