"""What a model computed for one text, recorded through the engine's observer, and the HTML page that shows it."""
