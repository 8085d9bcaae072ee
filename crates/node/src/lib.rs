//! The Node.js addon: conversion only.
