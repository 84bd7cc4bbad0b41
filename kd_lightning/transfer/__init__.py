"""Transfer terms: losses between layers of student and teacher, one method a file."""
