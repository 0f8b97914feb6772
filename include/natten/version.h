// The version, in this place only: the build and the Python package read it from here.
#pragma once

#define NATTEN_MLX_VERSION "0.5.0"
