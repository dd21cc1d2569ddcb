"""Headless Chromium for the tests that look at a page as people do."""

import json
import re
import subprocess
import time
from urllib.request import Request, urlopen


class Browser:
    """Headless Chromium through chromedriver's WebDriver protocol: the few calls that the test needs."""

    def __init__(self, driver, chromium, downloads):
        self.process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        port = next(found[1] for line in self.process.stdout or [] if (found := re.search(r"on port (\d+)\.", line)))
        self.root = f"http://127.0.0.1:{port}/session"
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=900,800"]
        options = {"binary": chromium, "args": arguments, "prefs": {"download.default_directory": str(downloads)}}
        made = self.call("", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}})
        self.root += f"/{made['sessionId']}"

    def call(self, path, body=None):
        request = Request(self.root + path, None if body is None else json.dumps(body).encode())
        with urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())["value"]

    def wait_for(self, code, seconds=30):
        """The value of an expression of JavaScript, as soon as it is true."""
        deadline = time.monotonic() + seconds
        while not (value := self.script(f"return {code}")):
            assert time.monotonic() < deadline, f"{code}: {seconds} s are over"
            time.sleep(0.05)
        return value

    def run(self, code):
        """What an async function's body returns."""
        text = f"const done = arguments[0]; (async () => {{ {code} }})().then(done, (error) => done(String(error)))"
        return self.call("/execute/async", {"script": text, "args": []})

    def script(self, code):
        return self.call("/execute/sync", {"script": code, "args": []})

    def press(self, key):
        actions = [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]
        self.call("/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def close(self):
        with self.process:  # closes its pipe and waits
            urlopen(Request(self.root, method="DELETE"), timeout=60).close()  # ends the browser
            self.process.terminate()
