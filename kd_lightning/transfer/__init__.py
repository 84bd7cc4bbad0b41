"""Knowledge beyond the answers: terms that compare layers of both networks, a method a file."""
