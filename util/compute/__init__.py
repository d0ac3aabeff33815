"""Operations on this machine: threads, oneDNN, precision and compilation."""
