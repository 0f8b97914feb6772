// Neighborhood attention for MLX: everything public.
#pragma once

#include "natten/attention.h"
#include "natten/distributed.h"
#include "natten/neighborhood.h"
#include "natten/tiers.h"
#include "natten/version.h"
