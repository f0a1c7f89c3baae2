"""The forward model of the microscope, its adjoint, its noise and its simulator."""
