"""Guided lessons, in order: each a file with its values in the address bar and what it draws; the texts are Markdown in assets/lessons."""

from app.lessons import certificate, drift, healing, layer, noise, speed, spike
from app.lessons.lesson import Lesson

LESSONS: tuple[Lesson, ...] = (noise.LESSON, spike.LESSON, layer.LESSON, drift.LESSON, healing.LESSON, speed.LESSON, certificate.LESSON)
