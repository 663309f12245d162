"""A real browser without a screen: Chromium as Qt ships it. Run as a program: FILE WIDTH PICTURE, prints JSON."""

from __future__ import annotations

import json
import os
import sys

QUESTION = """JSON.stringify({
  pictures: Array.from(document.images).map(i => [i.complete && i.naturalWidth, i.getBoundingClientRect().width]),
  page: document.documentElement.scrollWidth, window: window.innerWidth,
  words: document.body.innerText.length, title: document.title,
  requests: performance.getEntriesByType('resource').map(r => r.name.slice(0, 60))
    .filter(name => !name.startsWith('data:'))})"""


def look(file: str, width: int, picture: str) -> dict:
    """Measures of a file in a browser window of that width, and the messages on its console."""
    os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
    os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--no-sandbox --disable-gpu")
    from PySide6.QtCore import QTimer, QUrl
    from PySide6.QtWebEngineCore import QWebEnginePage
    from PySide6.QtWebEngineWidgets import QWebEngineView
    from PySide6.QtWidgets import QApplication

    application = QApplication([sys.argv[0]])
    messages: list[str] = []
    report: dict = {}

    class Page(QWebEnginePage):
        def javaScriptConsoleMessage(self, level, message, line, source):
            messages.append(message)

    view = QWebEngineView()
    page = Page(view)
    view.setPage(page)
    view.resize(width, 900)

    def answer(result):
        report.update(json.loads(result))
        view.grab().save(picture)
        application.quit()

    page.loadFinished.connect(lambda _: QTimer.singleShot(1500, lambda: page.runJavaScript(QUESTION, 0, answer)))
    page.load(QUrl.fromLocalFile(file))
    view.show()
    QTimer.singleShot(60_000, application.quit)
    application.exec()
    return {**report, "console": messages}


if __name__ == "__main__":
    print(json.dumps(look(sys.argv[1], int(sys.argv[2]), sys.argv[3])))
