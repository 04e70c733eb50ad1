"""Signing in with a real browser, Streamlit's own st.login and a provider of this test; roles and sign-out as a person meets them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
import synthetic
from browsing import ROOT, opened, settled, wait
from oidc import provider

from starfish_lab.store import Store

pytestmark = [pytest.mark.alone, pytest.mark.timeout(900)]


@pytest.fixture
def signing_lab(lab_home, tmp_path):
    """(address, provider) of an app without workers that asks people to sign in."""
    pytest.importorskip("authlib", reason="Authlib is not installed (pip install 'streamlit[auth]')")
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    with provider() as service:
        (tmp_path / ".streamlit").mkdir()
        (tmp_path / ".streamlit" / "secrets.toml").write_text(service.secrets_file(f"http://localhost:{port}"))
        environment = {**os.environ, "HOME": str(tmp_path), "STARFISH_LAB_ADMINS": "boss@x.org"}
        command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app" / "main.py"), "--server.port", str(port), "--server.headless", "true"]
        app = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        try:
            wait(lambda: socket.socket().connect_ex(("127.0.0.1", port)) == 0, 60)
            yield f"http://localhost:{port}", service
        finally:
            app.send_signal(signal.SIGTERM)
            app.wait(30)


def test_people_sign_in_do_what_their_role_allows_and_sign_out(signing_lab, browser, screenshots):
    url, service = signing_lab
    store = Store()
    synthetic.done(store, name="secret plan", owner="ann@x.org")

    def sign_in(page, email: str) -> None:
        service.person = {"email": email, "email_verified": True, "name": email}
        page.get_by_role("button", name="Sign in").click()
        page.get_by_text(email, exact=True).wait_for(timeout=60_000)
        settled(page)

    with opened(browser) as page:
        page.goto(f"{url}/runs")
        page.get_by_text("asks who you are").wait_for(timeout=60_000)
        settled(page)
        assert "secret plan" not in page.content() and page.locator("[data-testid=stDataFrame]").count() == 0
        if screenshots:
            page.screenshot(path=str(screenshots / "sign_in.png"))
        sign_in(page, "eve@x.org")
        page.goto(f"{url}/prune_and_heal?new=1")
        page.get_by_text("You may look at everything").wait_for(timeout=60_000)
        settled(page)
        assert page.get_by_role("button", name="Prune & heal").is_disabled()
        store.set_role("eve@x.org", "runner")  # no new sign-in is needed
        page.reload()
        page.get_by_role("button", name="Prune & heal").click()
        wait(lambda: len(store.runs(kind=None)) == 2, 30)
        assert store.run(2).owner == "eve@x.org"
        if screenshots:
            settled(page)
            page.screenshot(path=str(screenshots / "signed_in.png"))
        page.get_by_role("button", name="Sign out").click()
        page.get_by_text("asks who you are").wait_for(timeout=60_000)

    for scheme, width in (("light", 1440), ("dark", 800)):
        with opened(browser, width=width, scheme=scheme) as page:
            page.goto(url)
            sign_in(page, "boss@x.org")
            page.goto(f"{url}/team")
            page.get_by_role("button", name="Save people").wait_for(timeout=60_000)
            settled(page)
            assert store.audit()["action"].tolist() == ["launch"]
            assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            if screenshots:
                page.screenshot(path=str(screenshots / f"team_{width}_{scheme}.png"), full_page=True)
    store.close()
