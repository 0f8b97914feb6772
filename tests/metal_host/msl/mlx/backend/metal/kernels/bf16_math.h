// In place of MLX's header, which overloads Metal's mathematics for bfloat by the internals of Metal's library.
#pragma once
