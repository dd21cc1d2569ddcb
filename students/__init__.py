"""Students: the consistency parametrisation, conversion from a teacher, distillation, sampling and saving."""
