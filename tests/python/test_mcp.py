"""The MCP server, through the SDK's own client over stdio, and its bare pipes."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

import amk
import stand_in_verbs
from amk import cli, verbs
from amk.agent.tools import page_of, tools_of

pytest.importorskip("mcp")
from anyio.from_thread import start_blocking_portal
from mcp import Client, MCPError
from mcp.client.stdio import StdioServerParameters

SERVE = [sys.executable, stand_in_verbs.__file__, "serve"]
ENVELOPE = {"schema", "schema_version", "status", "exit_code"}


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    home = tmp_path_factory.mktemp("agent")
    with pytest.MonkeyPatch.context() as patch:  # the server's environment and ours, for the command line beside it
        patch.setenv("AMK_HOME", str(home))
        patch.setenv("AMK_CACHE_DIR", str(home / "cache"))
        yield {name: os.environ[name] for name in ("AMK_HOME", "AMK_CACHE_DIR")}


class Session:
    def __init__(self, portal, client):
        self.portal, self.client = portal, client

    def call(self, name, progress=None, **arguments):
        async def go():
            return await self.client.call_tool(name, arguments, progress_callback=progress)

        result = self.portal.call(go)
        record = result.structured_content
        assert record.keys() >= ENVELOPE and json.loads(result.content[0].text) == record
        assert result.is_error == (record["schema"] == "amk.error" or record["exit_code"] not in (0, 1))
        return record

    def tools(self):
        return {tool.name: tool for tool in self.portal.call(self.client.list_tools).tools}


@contextmanager
def connect(environment, command=SERVE):
    parameters = StdioServerParameters(command=command[0], args=command[1:], env=environment)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(Client(parameters)) as client:
        yield Session(portal, client)


@pytest.fixture(scope="module")
def session(environment):
    with connect(environment) as session:
        yield session


# --- the tools ----------------------------------------------------------------------------------------------------


def test_the_tools_are_the_table(environment):
    with connect(environment, [sys.executable, "-m", "amk", "mcp"]) as session:
        tools = session.tools()
    wanted = {tool.name: (verb, tool) for verb in verbs.VERBS for tool in verb.tools}
    agreed = "doctor targets propose validate evaluate loop_start job_status job_result job_cancel results explain "
    agreed += "bench profile report"
    assert set(tools) == set(wanted) >= {f"amk_{name}" for name in agreed.split()}
    for name, (verb, tool) in wanted.items():
        shown, notes = tools[name], tools[name].annotations
        assert shown.description == tool.help and len(tool.help) > 40
        assert (notes.read_only_hint, notes.destructive_hint, notes.idempotent_hint, notes.open_world_hint) == (
            tool.read_only, tool.destructive, tool.idempotent, False
        )  # fmt: skip
        options = {option.name for option in verb.options} - {"json", "quiet"}
        assert set(shown.input_schema["properties"]) - {"wait_s", "offset", "limit"} <= options
        assert shown.input_schema["additionalProperties"] is False
        assert set(shown.output_schema["required"]) == ENVELOPE
    assert {name for name, tool in tools.items() if not tool.annotations.read_only_hint} >= {
        "amk_evaluate", "amk_job_cancel"
    }  # fmt: skip


def test_input_schemas_say_what_is_taken(session):
    jsonschema = pytest.importorskip("jsonschema")
    for name, tool in session.tools().items():
        jsonschema.Draft202012Validator.check_schema(tool.input_schema)
        bound = tools_of(stand_in_verbs.TABLE)[name]
        fine = {option: "toy" for option in tool.input_schema["required"]}
        for option, schema in tool.input_schema["properties"].items():
            if "enum" in schema and option in fine:
                fine[option] = schema["enum"][0]
            elif schema["type"] == "array" and option in fine:
                fine[option] = ["toy"]
        jsonschema.validate(fine, tool.input_schema)
        bound.read(fine)
    schema = session.tools()["amk_evaluate"].input_schema["properties"]
    assert schema["config"]["properties"]["tiling"]
    assert schema["device"] == {
        "type": "string", "default": "auto", "description": "where it runs: auto, cpu, cuda or cuda:N"
    }  # fmt: skip
    assert schema["token"] == {
        "type": "integer", "default": 7, "description": "the token that starts the decode"
    }  # fmt: skip


CALLS = [
    ("amk_doctor", {}, ["doctor"]),
    ("amk_targets", {}, ["targets"]),
    ("amk_propose", {"model": "toy", "gpu": "h200"}, ["propose", "toy", "--gpu", "h200"]),
    ("amk_validate", {"input": "toy", "gpu": "h100", "max_seq": 64},
     ["validate", "toy", "--gpu", "h100", "--max-seq", "64"]),
    ("amk_explain", {"input": "toy-gqa", "gpu": "h200", "position": 3},
     ["explain", "toy-gqa", "--gpu", "h200", "--position", "3"]),
    ("amk_evaluate", {"model": "toy", "gpu": "h200", "device": "cpu", "token": None, "strict": True},
     ["eval", "toy", "--gpu", "h200", "--device", "cpu", "--strict"]),
    ("amk_profile", {"model": "toy", "gpu": "h200", "device": "cpu", "context": 9},
     ["profile", "toy", "--gpu", "h200", "--device", "cpu", "--context", "9"]),
    ("amk_bench", {"model": ["toy", "toy-gqa"], "gpu": "h200", "device": "cpu", "contexts": "1,16", "wait_s": 50.0},
     ["bench", "toy", "toy-gqa", "--gpu", "h200", "--device", "cpu", "--contexts", "1,16"]),
]  # fmt: skip


@pytest.mark.parametrize("name, arguments, command", CALLS, ids=[name for name, *_ in CALLS])
def test_a_call_gives_what_the_command_prints(session, name, arguments, command, capsys):
    record = session.call(name, **arguments)
    capsys.readouterr()
    assert cli.main([*command, "--json"]) == record["exit_code"]
    printed = json.loads(capsys.readouterr().out)
    if name == "amk_doctor":  # another process, which was started otherwise
        record["environment"] = printed["environment"] = None
    assert record == printed and record["exit_code"] == 0


def test_an_agent_goes_round_once(session, tmp_path):
    """Propose, edit, judge; a bad edit is a verdict, not an error."""
    first = session.call("amk_propose", model="toy", gpu="h200")
    second = session.call("amk_propose", model="toy", gpu="h200", incumbent=first["schedule_config"])
    assert second["changed"]["path"] in second["search_space"]
    verdict = session.call("amk_evaluate", model="toy", gpu="h200", device="cpu", config=second["schedule_config"])
    assert verdict["status"] == "PASSED" and verdict["schedule_id"] == second["schedule_id"]
    assert verdict["latency_kind"] == "predicted"
    bad = session.call("amk_evaluate", model="toy", gpu="h200", config={"tiling": {"gemv": {"N_tile": 17}}})
    assert (bad["schema"], bad["status"], bad["exit_code"]) == ("amk.eval", "REJECTED", 1) and bad["latency_us"] is None
    (tmp_path / "image.amk").write_bytes(b"no image")
    assert session.call("amk_validate", input=str(tmp_path / "image.amk"))["exit_code"] == 2


BAD = [
    ("amk_doctor", {"x": 1}, "unknown argument 'x'"),
    ("amk_targets", {"gpu": "h200"}, "unknown argument"),
    ("amk_propose", {}, "expected the argument 'model'"),
    ("amk_propose", {"model": "toy", "gpu": "h900"}, "expected one of"),
    ("amk_propose", {"model": "toy", "gpu": "h200", "incumbent": []}, "incumbent: expected an object"),
    ("amk_propose", {"model": "toy", "gpu": "h200", "incumbent": {"magic": 1}}, "magic"),
    ("amk_propose", {"model": "\ud800"}, "model"),
    ("amk_validate", {"input": "a\0b"}, "without NUL"),
    ("amk_validate", {"input": "/no/such/file"}, "no/such/file"),
    ("amk_validate", {"input": "toy", "max_seq": "64"}, "max_seq: expected an integer"),
    ("amk_validate", {"input": "toy", "strict": 1}, "strict: expected a boolean"),
    ("amk_evaluate", {"model": ["toy"]}, "model: expected a string"),
    ("amk_evaluate", {"model": "toy", "device": "tpu"}, "device: expected 'auto', 'cpu', 'cuda' or 'cuda:N'"),
    ("amk_evaluate", {"model": "toy", "token": 1.5}, "token: expected an integer"),
    ("amk_evaluate", {"model": "toy", "token": True}, "token: expected an integer"),
    ("amk_evaluate", {"model": "toy", "gpu": "h200", "token": 10**30}, "token"),
    ("amk_evaluate", {"model": "--help"}, "model"),
    ("amk_evaluate", {"model": "toy", "wait_s": 51}, "wait_s: expected a number in 0..50"),
    ("amk_evaluate", {"model": "toy", "json": True}, "unknown argument 'json'"),
    ("amk_explain", {"input": "toy", "gpu": "h200", "position": -1}, "position"),
    ("amk_explain", {"input": ""}, ""),
    ("amk_bench", {"gpu": "h200"}, "expected the argument 'model'"),
    ("amk_bench", {"model": "toy"}, "model: expected an array"),
    ("amk_bench", {"model": []}, "model: expected at least 1"),
    ("amk_bench", {"model": ["toy", 3]}, "model[1]: expected a string"),
    ("amk_bench", {"model": ["toy", "--help"], "gpu": "h200", "wait_s": 50.0}, "--help"),
    ("amk_bench", {"model": ["toy"], "gpu": "h200", "contexts": "1,x", "wait_s": 50.0}, "contexts"),
    ("amk_profile", {"model": "toy", "gpu": "h200", "context": 0, "wait_s": 50.0}, "context"),
    ("amk_profile", {"model": "toy", "trace": "t.txt", "wait_s": 50.0}, "trace"),
    ("amk_report", {"results": "results.tsv"}, "expected the argument 'output'"),
    ("amk_report", {"results": "/no/such/results.tsv", "output": "/tmp/x.txt", "wait_s": 50.0}, ".html"),
    ("amk_loop_start", {"gpu": "h200"}, "expected the argument 'model'"),
    ("amk_loop_start", {"model": "toy", "budget": "8"}, "budget: expected an integer"),
    ("amk_loop_start", {"model": "toy", "gpu": "h200", "budget": -1, "wait_s": 50.0}, "budget"),
    ("amk_loop_start", {"model": "toy", "sampler": "guess"}, "sampler: expected one of builtin, optuna"),
    ("amk_results", {"action": "rebuild"}, "action: expected one of summary, best, export, check"),
    ("amk_results", {"action": "best", "output_file": "/tmp/x"}, "unknown argument 'output_file'"),
    ("amk_results", {"action": "summary", "results": "/no/such/results.tsv"}, "results.tsv"),
    ("amk_job_status", {"job": "../../../etc/passwd"}, "12 hexadecimal digits"),
    ("amk_job_status", {"job": "0123456789ab"}, "no job"),
    ("amk_job_status", {"limit": 0}, "limit"),
    ("amk_job_result", {}, "expected the argument 'job'"),
    ("amk_job_result", {"job": 12}, "job: expected a string"),
    ("amk_job_cancel", {"job": "0123456789ab", "grace": -1}, "grace"),
    ("amk_job_cancel", {"job": "0123456789AB"}, "12 hexadecimal digits"),
    ("stand_in_here", {"how": "steps", "steps": 3}, "unknown argument 'steps'"),
    ("stand_in_here", {"how": "steps", "ratio": "1"}, "ratio: expected a number"),
    ("stand_in_start", {"how": "steps", "ratio": True}, "ratio: expected a number"),
]  # fmt: skip


@pytest.mark.parametrize("name, arguments, message", BAD, ids=[f"{n}-{a!r:.40}" for n, a, _ in BAD])
def test_bad_arguments_are_typed_errors(session, name, arguments, message):
    if arguments.get("model") == "\ud800":  # the client cannot send it; the server would refuse it
        with pytest.raises(amk.InputError, match="lone surrogates"):
            tools_of(verbs.VERBS)[name].read(arguments)
        return
    record = session.call(name, **arguments)
    assert record["schema"] == "amk.error" and record["exit_code"] in (1, 2), record
    assert record["error"]["code"] in ("input", "rejected", "unknown-job") and message in record["error"]["message"]


def test_an_unknown_tool_is_a_protocol_error(session):
    with pytest.raises(MCPError, match="unknown tool 'amk_format_disk'"):
        session.call("amk_format_disk")


# --- jobs ---------------------------------------------------------------------------------------------------------


def test_long_work_is_a_job_with_progress(session):
    heard = []

    async def hear(done, total, message):
        heard.append(message)

    record = session.call("stand_in_start", hear, how="steps", steps=8, wait_s=40.0, limit=5)
    assert record["schema"] == "amk.stand-in" and record["steps"] == [0, 1, 2, 3, 4]
    assert record["page"] == {"offset": 0, "limit": 5, "total": {"steps": 8}, "next_offset": 5}
    assert heard and all(message.startswith("amk: step ") for message in heard) and len(set(heard)) == len(heard)
    started = session.call("stand_in_start", how="steps", steps=8)
    assert started["schema"] == "amk.jobs" and started["exit_code"] == 0
    job = started["job"]["job"]
    assert session.call("amk_job_result", job=job)["result"] is None
    assert session.call("amk_job_status", job=job, wait=30.0)["job"]["state"] == "finished"
    pages, offset = [], 0
    while offset is not None:
        found = session.call("amk_job_result", job=job, offset=offset, limit=3)["result"]
        pages += found["steps"]
        offset = found["page"]["next_offset"]
    assert pages == list(range(8))
    listed = session.call("amk_job_status", limit=1)
    assert len(listed["jobs"]) == 1 and listed["jobs"][0]["job"] == job and listed["page"]["total"]["jobs"] > 1


def test_a_loop_and_its_records(session, tmp_path, capsys):
    results, corpus = str(tmp_path / "results.tsv"), str(tmp_path / "corpus.jsonl")
    started = session.call(
        "amk_loop_start", model="toy", gpu="h200", budget=3, device="cpu", results=results, corpus=corpus
    )
    assert started["schema"] == "amk.jobs" and started["job"]["tool"] == "amk_loop_start"
    ended = session.call("amk_job_status", job=started["job"]["job"], wait=50.0)["job"]
    assert ended["state"] == "finished" and sum("trial" in line for line in ended["progress"]) == 3
    found = session.call("amk_job_result", job=ended["job"])["result"]
    assert found["schema"] == "amk.loop" and len(found["trials"]) == 3 and found["regime"] == "predicted"
    listed = session.call("amk_results", action="export", results=results, offset=1, limit=1)
    assert [trial["schedule_id"] for trial in listed["trials"]] == [found["trials"][1]["schedule_id"]]
    assert listed["page"] == {"offset": 1, "limit": 1, "total": {"trials": 3}, "next_offset": 2}
    best = session.call("amk_results", action="best", results=results)
    capsys.readouterr()
    cli.main(["results", "best", results, "--json"])
    assert (
        best == json.loads(capsys.readouterr().out) and best["best"][0]["schedule_id"] == found["best"]["schedule_id"]
    )
    assert session.call("amk_results", action="check", results=results)["status"] == "OK"
    page = tmp_path / "page.html"
    written = session.call("amk_report", results=results, output=str(page), wait_s=50.0)
    assert written["schema"] == "amk.report" and written["trials"] == 3
    assert page.stat().st_size == written["page_bytes"]


def test_a_job_outlives_its_server(session, environment, tmp_path):
    """One whose client leaves, and one whose server is killed; a third server sees both to their ends."""
    end = tmp_path / "end"
    with connect(environment) as leaving:
        left = leaving.call("stand_in_start", how="steps", steps=10_000, until=str(end))["job"]
    with connect(environment) as dying:
        assert dying.call("amk_job_status", job=left["job"])["job"]["state"] in ("starting", "running")
        killed = dying.call("stand_in_start", how="steps", steps=10_000, until=str(end))["job"]
        os.kill(parent_of(killed["job"], environment), signal.SIGKILL)
    listed = {entry["job"]: entry for entry in session.call("amk_job_status")["jobs"]}
    for job in (left, killed):
        assert listed[job["job"]]["state"] in ("starting", "running")
        assert listed[job["job"]]["created_utc"] == job["created_utc"] and listed[job["job"]]["argv"] == job["argv"]
    end.touch()
    for job in (left, killed):
        assert session.call("amk_job_status", job=job["job"], wait=30.0)["job"]["state"] == "finished"
        assert session.call("amk_job_result", job=job["job"])["result"]["status"] == "OK"


def parent_of(job, environment):
    process = Path(environment["AMK_HOME"], "jobs", job, "process.json")
    while not process.exists():
        time.sleep(0.02)
    pid = json.loads(process.read_text())["pid"]
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_cancel_and_crash(session):
    job = session.call("stand_in_start", how="steps", steps=5000)["job"]["job"]
    ended = session.call("amk_job_cancel", job=job, grace=20.0)
    assert ended["status"] == "CANCELLED" and ended["job"]["state"] == "cancelled"
    stubborn = session.call("stand_in_start", how="stubborn", wait_s=5.0)["job"]["job"]
    assert session.call("amk_job_cancel", job=stubborn, grace=0.2)["job"]["state"] == "cancelled"
    died = session.call("stand_in_start", how="die", wait_s=30.0)
    assert died["schema"] == "amk.error" and died["error"]["code"] == "job-crashed"
    assert "killed by SIGKILL" in died["error"]["message"] and died["job"]["progress"][-1] == "amk: about to die"
    assert session.call("amk_job_result", job=died["job"]["job"])["exit_code"] == 1
    assert session.call("amk_job_cancel", job=died["job"]["job"])["job"]["state"] == "crashed"


# --- the pipes ----------------------------------------------------------------------------------------------------


def speak(environment, *messages, waits_for=None):
    """(answers by id, every line of stdout, stderr, exit code) of a server that is sent these lines, and left when the
    answers that are waited for (default: all) are there."""
    hello = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    lines = [
        json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": hello}),
        json.dumps({"jsonrpc": "2.0", "method": "notifications/initialized"}),
        *(m if isinstance(m, str) else json.dumps({"jsonrpc": "2.0", **m}) for m in messages),
    ]
    wanted = waits_for or {m["id"] for m in messages if isinstance(m, dict) and "id" in m} | {0}
    with subprocess.Popen(
        SERVE,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **environment},
    ) as server:
        server.stdin.write("".join(f"{line}\n" for line in lines).encode())
        server.stdin.flush()
        out = []
        while wanted and (line := server.stdout.readline()):
            out.append(line)
            wanted -= {json.loads(line).get("id")} if line.startswith(b"{") else set()
        rest, err = server.communicate(timeout=60)
    out += rest.splitlines()
    answers = {message["id"]: message for message in map(json.loads, filter(None, out)) if "id" in message}
    return answers, out, err.decode(), server.returncode


def call(number, name, **arguments):
    return {"id": number, "method": "tools/call", "params": {"name": name, "arguments": arguments}}


def test_nothing_but_protocol_on_stdout(environment):
    """Noise in the server itself, by C, by Python and by a child, and noise in a job: all of it goes elsewhere."""
    answers, out, err, code = speak(
        environment,
        call(1, "stand_in_here", how="noise"),
        call(2, "stand_in_start", how="noise", wait_s=40.0),
        call(3, "stand_in_here", how="stdin"),
        call(4, "amk_evaluate", model="toy", gpu="h200", device="cpu", wait_s=40.0),
    )
    assert len(out) >= 5 and all(json.loads(line)["jsonrpc"] == "2.0" for line in out)
    assert not any(b"NOISE" in line or b"forged" in line for line in out)
    assert err.count("NOISE") == 4 and code == 0  # of the server's own; the job's is in its folder
    records = {number: answers[number]["result"]["structuredContent"] for number in (1, 2, 3, 4)}
    assert all(record["exit_code"] == 0 for record in records.values())
    assert records[3]["stdin"] == ""  # nothing in the server can read the client's words


def test_garbage_on_the_wire_is_survived(environment):
    answers, out, _, code = speak(
        environment, "this is no JSON", "[]", "{}", '{"jsonrpc": "2.0"}', "\x00\xff", "[" * 10_000,
        {"id": 5, "method": "no/such/method"}, {"id": 6, "method": "tools/call", "params": {"name": 7}},
        {"id": 7, "method": "tools/call", "params": {"name": "amk_targets", "arguments": "none"}},
        call(8, "amk_targets"),
    )  # fmt: skip
    assert all("error" in answers[number] for number in (5, 6, 7))
    assert answers[8]["result"]["structuredContent"]["targets"] and code == 0
    assert all(json.loads(line)["jsonrpc"] == "2.0" for line in out)


def test_it_ends_when_told(environment):
    with subprocess.Popen(SERVE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as server:
        server.stdin.write(b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}\n')
        server.stdin.flush()
        assert json.loads(server.stdout.readline())["id"] == 1
        server.send_signal(signal.SIGINT)  # while a thread waits for its stdin
        assert server.wait(30) == 130
    done = subprocess.run(
        [sys.executable, "-m", "amk", "mcp"], stdin=subprocess.DEVNULL, capture_output=True, timeout=60
    )
    assert done.returncode == 0 and done.stdout == b"" and done.stderr == b""


def test_it_ends_while_it_waits_for_a_job(environment, session):
    """A client that leaves in the middle of a call is not kept; the job goes on, and keeps to its grace."""
    job = session.call("stand_in_start", how="stubborn", wait_s=1.0)["job"]["job"]
    while not any("step" in line for line in session.call("amk_job_status", job=job)["job"]["progress"]):
        time.sleep(0.1)
    states = {"amk_job_status": "running", "amk_job_cancel": "cancelling"}
    for tool, longest in (("amk_job_status", "wait"), ("amk_job_cancel", "grace")):
        waiting = call(1, tool, job=job, **{longest: 500.0})
        answers, _, _, code = speak(environment, waiting, {"id": 2, "method": "ping"}, waits_for={0, 2})
        assert code == 0 and "result" not in answers.get(1, {})
        assert session.call("amk_job_status", job=job)["job"]["state"] == states[tool]
    assert session.call("amk_job_cancel", job=job, grace=0.2)["job"]["state"] == "cancelled"


def test_without_the_extra_it_says_which(monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: None)
    assert cli.main(["mcp"]) == 4
    shown = capsys.readouterr()
    assert 'pip install "amk[agent]"' in shown.err and shown.out == ""


def test_pages():
    record = {"a": list(range(10)), "b": [1], "c": {"d": list(range(99))}}
    assert page_of(record, 0, 10) == record
    page = page_of(record, 4, 4)
    assert page["a"] == [4, 5, 6, 7] and page["b"] == [1] and page["page"]["next_offset"] == 8
    assert page_of(record, 8, 4)["page"]["next_offset"] is None and page_of(record, 99, 4)["a"] == []
    assert page_of({"n": 1}, 3, 4)["page"]["next_offset"] is None
