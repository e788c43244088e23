"""The explorer: a local web page that shows where one or two networks look on an image."""
