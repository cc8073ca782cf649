"""Health: what is watched while a run trains, how it is judged, and the page that shows it."""
