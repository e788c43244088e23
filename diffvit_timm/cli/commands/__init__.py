"""The commands of diffvit, one module each: its help, its `Options`, and `main(options)`."""
