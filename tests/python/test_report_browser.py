"""The page in a real browser: what is in its DOM, what it asks the network for, and whether a script of a record runs.

Chromium is started behind a proxy that answers nothing and remembers what was asked for, so that nothing leaves this
computer and a page that asks is caught. What the browser asks for on its own account, with a blank page, is not the
page's. A page without its defences, as a control, must be caught.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from amk.records.digest import group_trials
from amk.report import facts, page
from amk.report.history import History
from sample_trials import BUILD, LOOP, hostile_trials, make_loop

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--no-first-run", "--disable-quic", "--hide-scrollbars", "--disable-extensions",
    "--disable-default-apps", "--disable-domain-reliability", "--no-pings", "--proxy-bypass-list=<-loopback>",
    "--disable-features=NetworkTimeServiceQuerying,OptimizationHints,MediaRouter,Translate",
]  # fmt: skip

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: Debian's package is `chromium`")


OWN_HOSTS = {"accounts.google.com", "clients2.google.com", "update.googleapis.com"}  # and those of a blank page


@pytest.fixture(scope="module")
def own_hosts(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    return OWN_HOSTS | browse("<p>blank", tmp_path_factory.mktemp("blank"))[1]


@contextlib.contextmanager
def listening_proxy() -> Iterator[tuple[int, list[str]]]:
    """A port, and the first line of whatever was sent to it."""
    asked: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    with connection:
                        connection.settimeout(2)
                        with contextlib.suppress(OSError):
                            asked.append(connection.recv(4096).split(b"\r\n")[0].decode("latin-1"))

        threading.Thread(target=serve, daemon=True).start()
        yield server.getsockname()[1], asked
        server.shutdown(socket.SHUT_RDWR)


def browse(html: str, folder: Path, *arguments: str) -> tuple[str, set[str]]:
    """(the DOM after everything ran, the hosts that the browser asked for)."""
    path = folder / "page.html"
    path.write_text(html, encoding="utf-8")
    with listening_proxy() as (port, asked):
        command = [str(CHROMIUM), *FLAGS, f"--proxy-server=127.0.0.1:{port}", f"--user-data-dir={folder / 'profile'}"]
        command += [*arguments, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=120)
    shutil.rmtree(folder / "profile", ignore_errors=True)
    assert done.returncode == 0
    hosts = {re.sub(r"^\w+ (\w+://)?([^/: ]*).*$", r"\2", line) for line in asked}
    return done.stdout.decode("utf-8"), hosts


def was_scripted(dom: str) -> bool:
    return re.search(r"<html[^>]*pwned", dom) is not None


def to_page(trials: Any, *loops: Any) -> str:
    return page.render_page(History("results.tsv", tuple(trials), loops), {"version": "0", "build": BUILD})


def without_policy(html: str) -> str:
    shorter = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    assert shorter != html
    return shorter


@pytest.fixture(scope="module")
def hostile_page() -> str:
    return to_page(hostile_trials())


def test_rows_plots_and_commands_are_in_the_dom_and_nothing_is_asked_for(tmp_path: Path, own_hosts: set[str]) -> None:
    trials = make_loop(8) + make_loop(4, loop="ba9876543210", regime="measured-gpu", model="1B")
    started = {"loop": LOOP, "model": "toy", "gpu": "h200", "budget": 8}
    dom, asked = browse(to_page(trials, started), tmp_path)
    assert asked <= own_hosts
    for trial in trials:
        assert dom.count(f'data-trial="{trial.trial_id}"') == 1
    groups = group_trials(trials)
    assert dom.count("<svg") == sum(1 + len(facts.knobs_of(group)) for group in groups)
    assert dom.count('class="redo"') == sum(trial.tag == "kept" for trial in trials)
    assert "amk loop toy --gpu h200 --budget 8 --results redone.tsv" in dom
    knobs = [knob.path for group in groups for knob in facts.knobs_of(group)]
    for word in ("best so far", "us per token, predicted", "us per token, measured", *knobs):
        assert f">{word}<" in dom, word  # as text of a plot


@pytest.mark.parametrize("policy", [True, False], ids=["as it is", "without its policy"])
def test_hostile_text_stays_text(policy: bool, tmp_path: Path, own_hosts: set[str], hostile_page: str) -> None:
    dom, asked = browse(hostile_page if policy else without_policy(hostile_page), tmp_path)
    assert asked <= own_hosts and not was_scripted(dom)
    assert not re.search(r"<(script|iframe|img|link|object|embed)\b", dom)
    assert "&lt;script&gt;document.documentElement.id = 'pwned'&lt;/script&gt;" in dom


def test_a_page_without_defences_is_caught(
    tmp_path: Path, own_hosts: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control: the same template without escaping and policy runs the scripts, and asks for the pictures."""
    import jinja2

    real = jinja2.Environment
    monkeypatch.setattr(jinja2, "Environment", lambda **options: real(**{**options, "autoescape": False}))
    dom, asked = browse(without_policy(to_page(hostile_trials())), tmp_path)
    assert was_scripted(dom) and "evil.example" in asked
    (tmp_path / "policy").mkdir()
    dom, asked = browse(to_page(hostile_trials()), tmp_path / "policy")  # the policy alone holds too
    assert not was_scripted(dom) and asked <= own_hosts


def test_the_page_fits_a_phone(tmp_path: Path) -> None:
    """Nothing but what scrolls by itself is wider than the window. The page's own policy forbids the probe's script, so
    it is left out for this question."""
    probe = (
        "<script>addEventListener('load', () => document.title = "
        "`${document.documentElement.scrollWidth} ${innerWidth}`)</script></body>"
    )
    html = without_policy(to_page(make_loop(6) + hostile_trials()[-1:])).replace("</body>", probe)
    dom, _ = browse(html, tmp_path, "--window-size=500,900")
    found = re.search(r"<title>(\d+) (\d+)</title>", dom)
    assert found and int(found[1]) <= int(found[2]) == 500, found
