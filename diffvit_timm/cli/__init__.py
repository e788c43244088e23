"""The console command `diffvit`."""
