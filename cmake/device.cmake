# The GPU's side of csrc/device.h: device_none, device_emulated and device_cuda are the same symbols, of which a program
# links one. device_objects and device_libraries are the module's.
set(cuda_sources csrc/cuda/dots.cu csrc/cuda/logits.cu csrc/cuda/runtime.cu csrc/cuda/streams.cu csrc/cuda/weighted_sum.cu)

add_library(device_none OBJECT EXCLUDE_FROM_ALL csrc/cuda/none.cpp)
target_compile_options(device_none PRIVATE ${warnings} -O2)

# The kernels on the host (tests/native/emulate.h).
if(PYSOUP_CUDA STREQUAL "EMULATE" OR PYSOUP_NATIVE_TESTS)
  # A copy of each source by another name: a source file has one language.
  set(emulated_sources "")
  foreach(source IN LISTS cuda_sources)
    get_filename_component(name ${source} NAME_WE)
    set(copy ${CMAKE_CURRENT_BINARY_DIR}/emulated/${name}.cpp)
    file(GENERATE OUTPUT ${copy} CONTENT "#include \"${CMAKE_CURRENT_SOURCE_DIR}/${source}\"\n")
    list(APPEND emulated_sources ${copy})
  endforeach()
  add_library(device_emulated OBJECT EXCLUDE_FROM_ALL ${emulated_sources}
    tests/native/emulate_fibers.cpp tests/native/emulate_threads.cpp tests/native/emulate_runtime.cpp)
  target_include_directories(device_emulated PRIVATE tests/native)
  # -fno-strict-aliasing: vector accesses, as nvcc compiles them.
  target_compile_options(device_emulated PRIVATE ${warnings} -Wno-unknown-pragmas -O1 -ffp-contract=off
                                                 -fno-strict-aliasing)
  if(PYSOUP_SANITIZE MATCHES "thread")
    target_compile_definitions(device_emulated PUBLIC SOUP_EMULATE_THREADS)
  endif()
endif()

set(device_cuda ${PYSOUP_CUDA})
if(PYSOUP_CUDA STREQUAL "AUTO")
  include(CheckLanguage)
  check_language(CUDA)
  set(device_cuda OFF)
  if(CMAKE_CUDA_COMPILER)
    set(device_cuda ON)
  endif()
endif()

if(device_cuda STREQUAL "EMULATE")
  set(device_objects $<TARGET_OBJECTS:device_emulated>)
  set(device_libraries "")
elseif(device_cuda)
  include(cmake/cuda.cmake)
  set(device_objects $<TARGET_OBJECTS:device_cuda>)
  set(device_libraries CUDA::cudart_static)
else()
  set(device_objects $<TARGET_OBJECTS:device_none>)
  set(device_libraries "")
endif()
