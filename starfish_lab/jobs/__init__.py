"""Jobs: workers apart from the web server claim runs from the store and do them."""
