# With libc++ (the preset `clang`) GoogleTest is built from the sources that Debian's package brings: its library has
# libstdc++'s strings.
include(FetchContent)
set(INSTALL_GTEST OFF CACHE BOOL "")
FetchContent_Declare(GTest SOURCE_DIR /usr/src/googletest OVERRIDE_FIND_PACKAGE)
