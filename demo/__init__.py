"""The demo that people can click: `app.py` is the page, the other files know nothing of gradio."""
