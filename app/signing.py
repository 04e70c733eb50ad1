"""Who uses this session. With a section [auth] in `.streamlit/secrets.toml` people sign in by OpenID Connect; without, there is one local person.

Streamlit does the signing in and keeps the cookie. What a person may do is decided by the store, from the address that comes with the
person's identity token; nothing that a browser sends besides that signed cookie has a say.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path

import streamlit as st
from streamlit.errors import StreamlitAuthError

from starfish_lab import settings
from starfish_lab.errors import Forbidden, LabError

NEEDED = "Sign-in needs the package Authlib. On the machine of this app, run `pip install 'streamlit[auth]'` and start the app again."


def on() -> bool:
    """True where people sign in. Raises LabError where they should and cannot, rather than letting everyone in as an admin."""
    if st.secrets.load_if_toml_exists():
        asked = "auth" in st.secrets
    elif broken := [path for path in st.get_option("secrets.files") if Path(path).exists()]:
        raise LabError(f"The file {broken[0]} cannot be read, so it is not known who may sign in. Mend it; expected is TOML, with a section [auth].")
    else:
        asked = False
    if settings.ADMINS() and not asked:
        raise LabError(
            f"{settings.ADMINS.name} names admins, but nobody can sign in: no secrets.toml with a section [auth] was found. Put it into "
            f"the folder .streamlit where the app was started, or leave {settings.ADMINS.name} empty."
        )
    return asked


def who() -> str | None:
    """Address of the signed-in person; None where nobody signs in here. Raises Forbidden where this session did not sign in, or cannot be told."""
    if not on():
        return None
    if not st.user.get("is_logged_in"):
        raise Forbidden("Nobody is signed in here. Sign in, then do it again.")
    found = st.user.get("email")
    if not isinstance(found, str) or not found.strip():
        raise Forbidden("Your sign-in came without an email address, by which this lab knows people. Ask for the scope 'email' in secrets.toml.")
    if st.user.get("email_verified", True) in (False, "false"):
        raise Forbidden(f"{found} was not verified by the service you signed in with, so it says nothing about who you are. Verify it there first.")
    return found


def door() -> None:
    """Where people sign in and this session did not: the page to do so, and nothing else of the lab."""
    if not on() or st.user.get("is_logged_in"):
        return
    st.title("STARFISH Lab", anchor=False)
    st.markdown("This lab asks who you are before it shows its runs.")
    if importlib.util.find_spec("authlib") is None:
        st.error(NEEDED, icon=":material/key_off:")
        st.stop()
    for provider in _providers():
        if st.button(f"Sign in with {provider}" if provider else "Sign in", type="primary", icon=":material/login:", key=f"sign_in.{provider}"):
            _sign_in(provider)
    st.markdown("If you came by a link, open it once more after signing in.")
    st.stop()


def _sign_in(provider: str) -> None:
    try:
        st.login(provider or None)
    except StreamlitAuthError as error:
        raise LabError(f"Signing in is not possible: {' '.join(str(error).split())} Mend the section [auth] of secrets.toml.") from None


def _providers() -> list[str]:
    """Names of the services to sign in with; '' of the one that needs no name."""
    section = st.secrets["auth"]
    named = [name for name, value in section.items() if isinstance(value, Mapping) and name != "client_kwargs"]
    return [""] * ("client_id" in section) + named or [""]
