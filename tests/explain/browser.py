"""A headless Chromium to try the page in, driven as WebDriver has it (https://www.w3.org/TR/webdriver2), by Python.

Pointing, clicking and typing are the browser's own: the page can't tell them from a person's.
"""

import base64
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # how WebDriver marks an element in JSON
KEYS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015", "tab": "\ue004", "space": "\ue00d"}
NAMES = ("chromium", "chromium-browser", "google-chrome")
WAIT = 300  # seconds for an answer, on a machine that has other things to do


def why_not() -> str | None:
    """Return what is missing to run a browser, or None."""
    if not any(map(shutil.which, NAMES)):
        return "there is no Chromium here"
    return None if shutil.which("chromedriver") else "there is no chromedriver here"


class Browser:
    """A session of chromedriver."""

    def __init__(self, address: str):
        self.address = address
        binary = next(filter(None, map(shutil.which, NAMES)))
        flags = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--force-device-scale-factor=1",
        ]
        chrome = {"binary": binary, "args": flags}
        wanted = {"goog:chromeOptions": chrome, "goog:loggingPrefs": {"browser": "ALL"}}
        made = self.ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self.address = f"{address}/session/{made['sessionId']}"

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send a command, and return what it gives; raises RuntimeError with the driver's words."""
        data = None if method == "GET" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=WAIT) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from None

    def open(self, path: Path) -> None:
        """Open a page from the disk."""
        self.ask("POST", "/url", {"url": path.absolute().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run a function's body in the page, and return what it returns."""
        return self.ask("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def tell(self, command: str, **parameters: Any) -> Any:
        """Send a command of Chromium's own protocol."""
        return self.ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def look(self, width: int, height: int, dark: bool = False, touch: bool = False) -> None:
        """Look at the page through a window of some pixels, light or dark, by mouse or by finger."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": touch}
        self.tell("Emulation.setDeviceMetricsOverride", **metrics)
        self.tell("Emulation.setTouchEmulationEnabled", enabled=touch)
        media = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in media.items()]
        self.tell("Emulation.setEmulatedMedia", features=features)

    def find(self, selector: str) -> str:
        """Return the first element of a CSS selector."""
        return self.ask("POST", "/element", {"using": "css selector", "value": selector})[ELEMENT]

    def text(self, selector: str) -> str:
        """Return an element's text."""
        return self.ask("GET", f"/element/{self.find(selector)}/text")

    def click(self, selector: str) -> None:
        """Click on the middle of an element."""
        self.point(selector, press=True)

    def point(self, selector: str, x: float = 0.5, y: float = 0.5, press: bool = False, kind: str = "mouse") -> None:
        """Point at a place in an element, in shares of its width and height, and press there or not."""
        script = "arguments[0].scrollIntoView({block: 'center', behavior: 'instant'}); "
        script += "const b = arguments[0].getBoundingClientRect(); return [b.x, b.y, b.width, b.height]"
        left, top, width, height = self.run(script, {ELEMENT: self.find(selector)})
        moves = [{"type": "pointerMove", "duration": 0, "x": int(left + x * width), "y": int(top + y * height)}]
        moves += [{"type": "pointerDown", "button": 0}, {"type": "pointerUp", "button": 0}] if press else []
        pointer = {"type": "pointer", "id": kind, "parameters": {"pointerType": kind}, "actions": moves}
        self.ask("POST", "/actions", {"actions": [pointer]})

    def type(self, *keys: str) -> None:
        """Press keys, by their names, one after the other."""
        pressed = [{"type": kind, "value": KEYS[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self.ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": pressed}]})

    def picture(self, path: Path) -> None:
        """Write what the window shows as a PNG."""
        path.write_bytes(base64.b64decode(self.ask("GET", "/screenshot")))

    def complaints(self) -> list[str]:
        """Return the errors and warnings of the page so far."""
        return [entry["message"] for entry in self.ask("POST", "/se/log", {"type": "browser"})]


@contextmanager
def browsing() -> Iterator[Browser]:
    """Run a browser, which ends with the `with` block."""
    command = ["chromedriver", "--port=0"]
    driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert driver.stdout is not None
    try:
        port = next(found[1] for line in driver.stdout if (found := re.search(r"successfully on port (\d+)", line)))
        browser = Browser(f"http://127.0.0.1:{port}")
        try:
            yield browser
        finally:
            browser.ask("DELETE", "")
    finally:
        driver.terminate()
        driver.wait()
        driver.stdout.close()
