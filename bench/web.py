"""How long a visitor of the web page waits.

`python -m bench.web` prints a Markdown table: seconds from the command `limelight web` to each moment, with the
embedded model on the CPU and one image, by a real headless Chromium. Each repetition starts a server of its own.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from statistics import median
from time import perf_counter

from playwright.sync_api import sync_playwright

MOMENTS = ("the address is printed", "the page is there", "the first preview", "the finished image")


def visit(steps: int) -> list[float]:
    """Seconds from the start of the command to each of `MOMENTS`."""
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        began, moments = perf_counter(), list[float]()
        command = [sys.executable, "-m", "limelight", "web", "--device", "cpu"]
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout is not None
            address = next(line.split()[-1] for line in server.stdout if "limelight is at" in line)
            moments.append(perf_counter() - began)

            page = browser.new_page()
            page.goto(address)
            page.wait_for_selector(".ll-chip")
            moments.append(perf_counter() - began)

            for label, value in (("Steps", steps), ("Images", 1)):
                page.get_by_label(f"number input for {label}").first.fill(str(value))
                page.keyboard.press("Tab")
            page.click("#steer-run")
            page.wait_for_selector("#steer-plain img", timeout=300_000)
            moments.append(perf_counter() - began)
            page.wait_for_selector("text=Each row is one seed", timeout=300_000)
            moments.append(perf_counter() - began)
        finally:
            server.terminate()
            server.wait()
            browser.close()
    return moments


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    runs = [visit(options.steps) for _ in range(options.repeat)]

    print("| until | seconds |\n|---|---|")
    for moment, values in zip(MOMENTS, zip(*runs, strict=True), strict=True):
        print(f"| {moment} | {median(values):.1f} |")


if __name__ == "__main__":
    main()
