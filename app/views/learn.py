"""Learn: seven guided lessons, from the shape of noise to reading a certificate."""

from __future__ import annotations

import streamlit as st

from app.lessons import LESSONS
from app.lessons import presenter as around
from app.lessons.lesson import Value

NUMBER = Value(name="lesson", default=1, limits=(1, len(LESSONS)))

around.bar(LESSONS, NUMBER)
lesson = LESSONS[NUMBER.get() - 1]
st.header(lesson.title, anchor=False)
lesson.draw()
st.markdown(f"**To remember.** {lesson.text('Remember')}")
around.feet(LESSONS, NUMBER)
