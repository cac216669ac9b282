"""From a net to an answer: what may be said about a picture, the bundle on disk, the web page."""
