"""Pages that people open: a run as one file of HTML, runs beside each other, and a leaderboard."""
