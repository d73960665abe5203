"""What a job needs before it is submitted: parameters, memory, arithmetic, communication, a layout and its reasons."""
