# The instruction sets: from this one list CMake compiles them and dispatch.c chooses among them.
#
# lc_isa(NAME ARCH [BASE isa] [SEARCHES isa] [SHARES_TEXT] [TEST_ONLY] [FLAGS alternative...] [FEATURES feature...])
#
# compiles csrc/cpu/kernels_NAME.c. ARCH: X86_64, ARM64 or ANY. FEATURES: what a machine must have (cpu_features.h); each
# stands for its compiler flag, unless there are FLAGS: ways to say the same, of which the first that the compiler
# understands is taken. BASE: whose kernels it overrides (default: ref). SEARCHES: whose quantize_search_NAME.c it uses
# (default: its own). SHARES_TEXT: another set is compiled from the same text, and has the sanitizers. TEST_ONLY: in builds
# with LOCALCODER_BUILD_TESTS.
separate_arguments(compiler_arguments UNIX_COMMAND "${CMAKE_C_COMPILER_ARG1}")

# Whether the compiler takes the text with these flags. CMake's own checks would link a program too, for which Zig compiles
# the C library anew with each set of flags.
function(lc_compiles result text)
  set(probe ${CMAKE_CURRENT_BINARY_DIR}/generated/probe)
  file(WRITE ${probe}.c "${text}\n")
  execute_process(
    COMMAND ${CMAKE_C_COMPILER} ${compiler_arguments} ${ARGN} -c ${probe}.c -o ${probe}.o
    RESULT_VARIABLE failed OUTPUT_QUIET ERROR_QUIET)
  if(failed)
    set(${result} OFF PARENT_SCOPE)
  else()
    set(${result} ON PARENT_SCOPE)
  endif()
endfunction()

lc_compiles(LOCALCODER_X86_64 "#if !defined(__x86_64__)\n#error another processor\n#endif")
lc_compiles(LOCALCODER_ARM64 "#if !defined(__aarch64__)\n#error another processor\n#endif")
set(LOCALCODER_ANY ON)

# The first of the alternatives, each a list of flags, that the compiler understands; "NOTFOUND" if none.
function(lc_find_flags result)
  set(${result} "NOTFOUND" PARENT_SCOPE)
  foreach(flags ${ARGN})
    separate_arguments(flags UNIX_COMMAND "${flags}")
    lc_compiles(is_known "int probe;" ${flags})
    if(is_known)
      set(${result} "${flags}" PARENT_SCOPE)
      return()
    endif()
  endforeach()
endfunction()

set(LC_ISA_LINES "")

function(lc_isa name arch)
  cmake_parse_arguments(ISA "SHARES_TEXT;TEST_ONLY" "BASE;SEARCHES" "FEATURES;FLAGS" ${ARGN})
  if(ISA_TEST_ONLY AND NOT LOCALCODER_BUILD_TESTS)
    return()
  endif()
  if(NOT ISA_BASE)
    set(ISA_BASE ref)
  endif()
  if(NOT ISA_SEARCHES)
    set(ISA_SEARCHES ${name})
  endif()
  set(mask "0")
  set(feature_flags "")
  foreach(feature ${ISA_FEATURES})
    string(APPEND mask " | LC_FEATURE_${feature}")
    string(TOLOWER "-m${feature}" flag)
    string(REPLACE "_" "-" flag ${flag})
    string(APPEND feature_flags " ${flag}")
  endforeach()
  if(NOT ISA_FLAGS)
    string(STRIP "${feature_flags}" ISA_FLAGS)
  endif()

  set(absent "")
  set(flags "")
  if(NOT LOCALCODER_${arch})
    set(absent "not built for this platform")
  elseif(ISA_FLAGS)
    lc_find_flags(flags ${ISA_FLAGS})
    if(NOT flags)
      set(absent "not built: the compiler does not know it")
    endif()
  endif()
  if(absent)
    set(line "LC_ISA_ABSENT(${name}, \"${absent}\")")
  else()
    set(line "LC_ISA(${name}, ${ISA_BASE}, ${ISA_SEARCHES}, ${mask})")
    set(kernels csrc/cpu/kernels_${name}.c)
    set(files ${kernels})
    if(ISA_SEARCHES STREQUAL name)
      set(search csrc/cpu/quantize_search_${name}.c)
      list(APPEND files ${search})
    endif()
    target_sources(localcoder_core PRIVATE ${files})
    set_source_files_properties(${files} PROPERTIES COMPILE_OPTIONS "${flags}")
    set_source_files_properties(${kernels} PROPERTIES COMPILE_DEFINITIONS
      "LC_KERNELS=lc_kernels_${name};LC_ISA_NAME=\"${name}\"")
    set(unchecked "") # one text is compiled with checks once, because that is slow
    if(ISA_SHARES_TEXT)
      list(APPEND unchecked ${kernels})
    endif()
    if(NOT name STREQUAL ref)
      list(APPEND unchecked ${search})
    endif()
    if(LOCALCODER_SANITIZE AND unchecked)
      set_property(SOURCE ${unchecked} APPEND PROPERTY COMPILE_OPTIONS -fno-sanitize=all)
    endif()
    # Repeated at every intrinsic, these would take minutes to compile.
    if(LOCALCODER_SANITIZE MATCHES address AND CMAKE_C_COMPILER_ID STREQUAL GNU AND NOT name STREQUAL ref)
      set_property(SOURCE ${kernels} APPEND PROPERTY COMPILE_OPTIONS
        --param=asan-stack=0 -fno-sanitize=null,object-size,pointer-overflow,alignment)
    endif()
  endif()
  set(LC_ISA_LINES "${LC_ISA_LINES}${line}\n" PARENT_SCOPE)
endfunction()

# Best first; `ref` runs everywhere. All give the same bits but amx_bf16, where a sequence is given many tokens at once.
set(avx2 AVX2 FMA F16C)
set(avx512 ${avx2} AVX512F AVX512BW AVX512DQ AVX512VL)
set(avx512vnni ${avx512} AVX512VNNI)
lc_isa(amx_bf16     X86_64 SHARES_TEXT BASE avx512vnni SEARCHES avx512
       FEATURES ${avx512vnni} AVX512BF16 AMX_TILE AMX_INT8 AMX_BF16)
lc_isa(amx          X86_64 BASE avx512vnni SEARCHES avx512 FEATURES ${avx512vnni} AMX_TILE AMX_INT8)
lc_isa(zen5         X86_64 SHARES_TEXT BASE avx512vnni SEARCHES avx512
       FEATURES ${avx512vnni} AVXVNNI AVX512VP2INTERSECT) # no other processor has both
lc_isa(avx512vnni   X86_64 SEARCHES avx512 FEATURES ${avx512vnni})
lc_isa(avx512       X86_64 SHARES_TEXT FEATURES ${avx512})
lc_isa(avxvnni      X86_64 SHARES_TEXT SEARCHES avx2 FEATURES ${avx2} AVXVNNI)
lc_isa(avx2         X86_64 FEATURES ${avx2})
lc_isa(neon_i8mm    ARM64 BASE neon_dotprod SEARCHES neon FEATURES DOTPROD I8MM
       FLAGS -march=armv8.2-a+dotprod+i8mm -mcpu=generic+dotprod+i8mm)
lc_isa(neon_dotprod ARM64 SEARCHES neon FEATURES DOTPROD FLAGS -march=armv8.2-a+dotprod -mcpu=generic+dotprod)
lc_isa(neon         ARM64 SHARES_TEXT)
lc_isa(ref          ANY)
# For tests alone.
lc_isa(amx_emulated X86_64 TEST_ONLY SHARES_TEXT BASE avx512vnni SEARCHES avx512 FEATURES ${avx512vnni})
lc_isa(amx_bf16_emulated X86_64 TEST_ONLY BASE avx512vnni SEARCHES avx512 FEATURES ${avx512vnni} AVX512BF16)
lc_isa(zen5_elsewhere X86_64 TEST_ONLY BASE avx512vnni SEARCHES avx512 FEATURES ${avx512vnni})
lc_isa(avxvnni_evex X86_64 TEST_ONLY SHARES_TEXT SEARCHES avx2 FEATURES ${avx2} AVX512F AVX512VL AVX512VNNI)

file(GENERATE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/generated/instruction_sets.h CONTENT "${LC_ISA_LINES}")
target_include_directories(localcoder_core PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/generated)
