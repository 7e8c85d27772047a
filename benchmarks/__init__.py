"""Speed, growth and quality of this project, measured beside what one would use instead: `make bench`."""
