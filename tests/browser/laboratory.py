"""A JupyterLab server of the test's own, and one notebook in it as its reader sees it.

The server gets private folders for settings, a free port and no token, and ends with the test.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any

import nbformat
from pages import watch

PATIENCE = 300  # seconds; the machines that run tests may be busy
SETTINGS = {
    "@jupyterlab/notebook-extension/tracker.jupyterlab-settings": {"windowingMode": "none"},
    "@jupyterlab/apputils-extension/notification.jupyterlab-settings": {"fetchNews": "false"},
    "@jupyterlab/completer-extension/manager.jupyterlab-settings": {"autoCompletion": False},
}
DARK = {"@jupyterlab/apputils-extension/themes.jupyterlab-settings": {"theme": "JupyterLab Dark"}}
CURRENT = "window.jupyterapp.shell.currentWidget"
EVALUATE = """async (expression) => {
  const kernel = CURRENT.sessionContext.session.kernel;
  const reply = await kernel.requestExecute(
    {code: "", silent: true, user_expressions: {value: expression}}).done;
  return reply.content.user_expressions.value;
}""".replace("CURRENT", CURRENT)


class Lab:
    """The server, and a browser window for it."""

    def __init__(self, folder: Path, browser: Any) -> None:
        self.root = folder / "root"
        self.root.mkdir(parents=True)
        self._folder, self._browser = folder, browser
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]

    def __enter__(self) -> Lab:
        private = {
            name: str(self._folder / name.lower())
            for name in (
                "JUPYTER_CONFIG_DIR",
                "JUPYTER_DATA_DIR",
                "JUPYTER_RUNTIME_DIR",
                "JUPYTERLAB_SETTINGS_DIR",
                "JUPYTERLAB_WORKSPACES_DIR",
                "IPYTHONDIR",
            )
        }
        self.settings = Path(private["JUPYTERLAB_SETTINGS_DIR"])
        self.set(SETTINGS)
        command = [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            f"--ServerApp.port={self.port}",
            f"--ServerApp.root_dir={self.root}",
            "--ServerApp.ip=127.0.0.1",
            "--IdentityProvider.token=",
            "--ServerApp.disable_check_xsrf=True",
            "--LabApp.expose_app_in_browser=True",
        ]
        self._log = (self._folder / "log.txt").open("w")
        self._server = subprocess.Popen(
            command,
            cwd=self.root,
            env={**os.environ, **private, "OMP_NUM_THREADS": "1"},
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_up()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.terminate()
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            self._server.kill()
        self._log.close()

    def _wait_until_up(self) -> None:
        for _ in range(4 * PATIENCE):
            try:
                self.get("api/status")
                return
            except OSError:
                assert self._server.poll() is None, (self._folder / "log.txt").read_text()
                time.sleep(0.25)
        raise TimeoutError((self._folder / "log.txt").read_text())

    def set(self, settings: dict[str, dict[str, Any]]) -> None:
        """Write settings of JupyterLab; they hold for windows opened later."""
        for name, values in settings.items():
            path = self.settings / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(values))

    def get(self, path: str, method: str = "GET") -> Any:
        """Ask the server's REST interface."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/{path}", method=method)
        with urllib.request.urlopen(request, timeout=60) as reply:
            text = reply.read()
        return json.loads(text) if text else None

    def write(self, name: str, cells: list[str]) -> Path:
        """A new notebook of code cells."""
        notebook = nbformat.v4.new_notebook(
            cells=[nbformat.v4.new_code_cell(cell) for cell in cells],
            metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}},
        )
        path = self.root / name
        nbformat.write(notebook, path)
        return path

    def open(self, name: str, dark: bool = False) -> Notebook:
        """A new window with a notebook of the root folder."""
        self.set({key: values if dark else {} for key, values in DARK.items()})
        context = self._browser.new_context(viewport={"width": 1200, "height": 1400})
        page = context.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        wrong = watch(page)
        page.goto(f"http://127.0.0.1:{self.port}/lab/tree/{name}?reset")
        page.wait_for_selector(".jp-NotebookPanel .jp-Cell")
        return Notebook(self, page, wrong)

    def restart_kernels(self) -> None:
        """Restart every kernel, as the menu does."""
        for session in self.get("api/sessions"):
            self.get(f"api/kernels/{session['kernel']['id']}/restart", "POST")

    def end_kernels(self) -> None:
        """End all sessions, as closing the program does."""
        for session in self.get("api/sessions"):
            self.get(f"api/sessions/{session['id']}", "DELETE")


class Notebook:
    """A notebook in a window."""

    def __init__(self, lab: Lab, page: Any, wrong: list[str]) -> None:
        self.lab, self.page, self.wrong = lab, page, wrong

    def run_all(self) -> None:
        """Run all cells and wait until the kernel has nothing to do."""
        self.page.wait_for_function(f"{CURRENT}.sessionContext.session?.kernel?.status === 'idle'")
        self.page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.page.wait_for_function(
            "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
            ".every((prompt) => /\\d/.test(prompt.textContent))",
        )

    def ask(self, expression: str) -> Any:
        """The value of a Python expression in the kernel (of plain data)."""
        import ast

        value = self.page.evaluate(EVALUATE, expression)
        assert value["status"] == "ok", value
        return ast.literal_eval(value["data"]["text/plain"])

    def until(self, expression: str, timeout: float = PATIENCE) -> None:
        """Wait until a Python expression is true in the kernel."""
        end = time.monotonic() + timeout
        while not self.ask(f"bool({expression})"):
            assert time.monotonic() < end, f"not true within {timeout} s: {expression}"
            time.sleep(0.1)

    def widget(self, number: int) -> Any:
        """The live widget below a code cell."""
        return self.page.locator(".jp-CodeCell").nth(number).locator(".neox-widget")

    def save(self) -> None:
        """Write the notebook to its file."""
        self.page.evaluate("window.jupyterapp.commands.execute('docmanager:save')")
        self.page.wait_for_function(f"!{CURRENT}.context.model.dirty")

    def picture(self, name: str) -> Path:
        """A screenshot, in the folder above the notebooks'."""
        path = self.lab.root.parent / name
        self.page.screenshot(path=path)
        return path

    def close(self) -> None:
        """Close the window."""
        self.page.context.close()
        assert not self.wrong, self.wrong
